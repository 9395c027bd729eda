// Who was ready, starting or asleep in the last hour, from the fleet's events.

import { h, s, show } from "./dom.js";
import { clock, duration, stateName, tone } from "./words.js";

const HOUR = 3600;
const ROW = 30;
const AXIS = 22;
const MOST_ROWS = 40;
const MOST_EVENTS = 30;

// The states of each backend between two times: name -> [{state, from, to, reason}].
export function spans(events, backends, from, now) {
  const found = new Map(backends.map((view) => [view.name, []]));
  for (const event of events) {
    if (event.decision) continue;
    if (!found.has(event.backend)) found.set(event.backend, []);
    found.get(event.backend).push(event);
  }
  const present = new Map(backends.map((view) => [view.name, view]));
  for (const [name, moves] of found) {
    moves.sort((one, other) => one.at - other.at);
    const view = present.get(name);
    const list = [];
    let state = moves.length ? moves[0].from : view.state;
    // Before the first event that is remembered it is known for a backend that has not moved since.
    let begin = moves.length ? from : Math.max(from, view.since);
    let reason = "";
    const push = (to) => {
      const start = Math.max(begin, from);
      if (state !== "absent" && to > start) list.push({ state, from: start, to, reason });
    };
    for (const move of moves) {
      push(move.at);
      state = move.to;
      begin = move.at;
      reason = move.reason || "";
    }
    push(now);
    found.set(name, list);
  }
  return found;
}

export class Timeline {
  constructor(store, box, list) {
    this.store = store;
    this.box = box;
    this.list = list;
    new ResizeObserver(() => this.update()).observe(box);
  }

  update() {
    const { store, box } = this;
    const width = Math.floor(box.clientWidth);
    if (width <= 0 || !store.at) return;
    const now = store.now();
    const from = now - HOUR;
    const all = [...spans(store.events, store.backends, from, now)].filter(([, list]) => list.length);
    this.tell();
    if (!all.length) {
      show(box, h("p", { class: "empty" }, "Nothing has run in the last hour."));
      return;
    }
    const rows = all.slice(0, MOST_ROWS);
    const longest = Math.max(...rows.map(([name]) => name.length));
    const left = Math.min(Math.max(56, longest * 7.4 + 16), width * 0.3);
    const inner = width - left - 1;
    const height = rows.length * ROW + AXIS;
    const place = (at) => left + ((at - from) / HOUR) * inner;
    const drawing = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words(rows) });
    for (let minutes = 0; minutes <= 60; minutes += width < 560 ? 20 : 10) {
      const x = Math.round(place(now - minutes * 60)) - 0.5;
      const anchor = minutes === 0 ? "end" : minutes === 60 ? "start" : "middle";
      drawing.append(
        s("line", { class: "grid", x1: x, x2: x, y1: 0, y2: height - AXIS }),
        s("text", { class: "axis", x, y: height - 5, "text-anchor": anchor }, minutes === 0 ? "now" : `−${minutes} min`),
      );
    }
    rows.forEach(([name, list], number) => {
      const y = number * ROW;
      const room = Math.floor((left - 10) / 7.2);
      drawing.append(
        s("text", { class: "row-name", x: 0, y: y + 19 }, s("title", null, name), name.length > room ? `${name.slice(0, room - 1)}…` : name),
        s("rect", { class: "track", x: left, y: y + 7, width: inner, height: ROW - 14, rx: 4 }),
      );
      for (const span of list) {
        const x = place(span.from);
        drawing.append(
          s(
            "rect",
            { class: `span s-${tone(span.state)}`, x: x.toFixed(1), y: y + 7, width: Math.max(2, place(span.to) - x).toFixed(1), height: ROW - 14, rx: 3 },
            s("title", null, `${name}: ${stateName(span.state)} from ${clock(span.from)} for ${duration(span.to - span.from)}${span.reason ? ` (${span.reason})` : ""}`),
          ),
        );
      }
    });
    show(box, drawing, all.length > MOST_ROWS ? h("p", { class: "faint small" }, `and ${all.length - MOST_ROWS} more backends`) : null);
  }

  tell() {
    const latest = this.store.events.filter((event) => event.decision !== "phase").slice(-MOST_EVENTS).reverse();
    show(
      this.list,
      latest.map((event) =>
        h(
          "li",
          null,
          h("time", null, clock(event.at)),
          h("b", null, event.backend),
          h("span", null, event.decision ? `${event.decision}${event.for ? ` for ${event.for}` : ""}` : `${stateName(event.from)} → ${stateName(event.to)}`),
          h("span", { class: "faint" }, event.reason || ""),
        ),
      ),
      latest.length ? null : h("li", { class: "faint" }, "Nothing yet."),
    );
  }
}

// The same for those who do not see it.
function words(rows) {
  const told = rows.map(([name, list]) => {
    const sums = new Map();
    for (const span of list) sums.set(stateName(span.state), (sums.get(stateName(span.state)) || 0) + span.to - span.from);
    return `${name}: ${[...sums].map(([state, seconds]) => `${state} for ${duration(seconds)}`).join(", ")}`;
  });
  return `The last hour. ${told.join(". ")}.`;
}
