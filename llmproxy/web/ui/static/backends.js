// The list of backends: a row for each, of which only what has changed is drawn anew.

import { buttons } from "./actions.js";
import { h, show } from "./dom.js";
import { pending, ratio } from "./tasks.js";
import { about, amount, duration, plural, rate, stateName, tone } from "./words.js";

export const pill = (view) => h("span", { class: `pill s-${tone(view.state)}` }, `${stateName(view.state)}${ratio(view)}`);

// One sentence on what it does, or why it does not.
export function sentence(view, now, at) {
  const gone = now - at;
  switch (view.state) {
    case "ready":
      if (pending(view)) return pending(view);
      if (view.in_flight > 0) return view.tokens_per_second ? rate(view.tokens_per_second) : "answering";
      if (view.pinned) return "idle; stays, as it is pinned";
      return view.idle_in === null ? "idle" : `idle; leaves in ${about(view.idle_in - gone)}`;
    case "starting":
    case "waking":
      return view.reason || "";
    case "sleeping": {
      const wake = view.estimate.wake;
      const back = wake === null ? "" : `back in about ${duration(wake)}`;
      const end = view.idle_in === null ? "" : `stops in ${about(view.idle_in - gone)}`;
      return [back, end].filter(Boolean).join("; ");
    }
    case "failed":
      return view.last_failure ? view.last_failure.message : "";
    case "draining":
      return `finishing ${plural(view.in_flight, "request")}`;
    case "absent":
      if (view.waits) return `waits: ${view.waits.why}`;
      if (view.refused) return view.refused;
      return view.last_start
        ? `starts when asked for, in about ${duration(view.estimate.start)}`
        : "starts when asked for";
    default:
      return "";
  }
}

// How far a start is, as words and as a bar.
export function startup(view, now, at) {
  if (view.state !== "starting" && view.state !== "waking") return null;
  const gone = now - at;
  const elapsed = Math.max(0, now - view.since);
  const part = view.progress === null ? "" : ` ${Math.round(view.progress * 100)} %`;
  const eta = view.eta === null ? null : Math.max(0, view.eta - gone);
  const left = eta === null ? `${about(elapsed)} so far` : eta < 1 ? "any moment" : `about ${about(eta)} left`;
  const phase = view.phase || stateName(view.state);
  return h(
    "div",
    { class: "startup" },
    h("span", { class: "phase" }, `${phase}${part}`),
    h("span", { class: "eta" }, left),
    h("progress", {
      "aria-label": `How far ${view.name} is`,
      max: 1,
      value: eta === null ? null : Math.min(0.99, elapsed / (elapsed + eta || 1)).toFixed(3),
    }),
  );
}

function counts(view) {
  const parts = [];
  if (view.in_flight) parts.push(h("span", { class: "count" }, h("b", null, view.in_flight), " in flight"));
  if (view.waiting) parts.push(h("span", { class: "count waits" }, h("b", null, view.waiting), " waiting"));
  return parts;
}

function memory(view) {
  const needed = view.needs.memory;
  if (!needed || !view.needs.gpus.length) return null;
  const size = amount(needed, Number.isInteger(needed) && needed > 1 ? "bytes" : "fraction");
  return `${size} of GPU ${view.needs.gpus.join(", ")}`;
}

class Row {
  constructor(store, view) {
    this.view = view;
    this.store = store;
    this.actions = buttons(store, () => this.view);
    this.head = h("div", { class: "who" });
    this.state = h("div", { class: "state" });
    this.now = h("div", { class: "now" });
    this.element = h("li", { class: "backend", "data-backend": view.name }, this.head, this.state, this.now, this.actions.element);
  }

  update(view) {
    this.view = view;
    this.element.dataset.state = view.state;
    show(
      this.head,
      h("a", { class: "name", href: `/ui/backends/${encodeURIComponent(view.name)}` }, view.name),
      h("span", { class: "faint" }, [view.models.join(", ") || "no model known", memory(view)].filter(Boolean).join(" · ")),
    );
    show(this.state, pill(view), counts(view));
    this.actions.update();
    this.tick();
  }

  tick() {
    const { view, store } = this;
    const hint = view.state === "failed" && view.last_failure && view.last_failure.hint;
    const retry = view.state === "failed" && view.retry_in ? `May be tried again in ${about(view.retry_in - (store.now() - store.at))}.` : "";
    show(
      this.now,
      startup(view, store.now(), store.at),
      h("p", { class: "sentence" }, sentence(view, store.now(), store.at)),
      hint ? h("p", { class: "hint" }, hint) : null,
      retry ? h("p", { class: "faint" }, retry) : null,
    );
  }
}

const NEEDLE = 8;

export class Backends {
  constructor(store, list, filter, label) {
    this.store = store;
    this.list = list;
    this.filter = filter;
    this.label = label;
    this.rows = new Map();
    filter.addEventListener("input", () => this.sift());
  }

  update() {
    const { backends } = this.store;
    this.list.removeAttribute("aria-busy");
    if (!this.rows.size) this.list.replaceChildren();
    const seen = new Set();
    for (const view of backends) {
      seen.add(view.name);
      let row = this.rows.get(view.name);
      if (!row) {
        row = new Row(this.store, view);
        this.rows.set(view.name, row);
        this.list.append(row.element);
      }
      row.update(view);
    }
    for (const [name, row] of this.rows) {
      if (seen.has(name)) continue;
      row.element.remove();
      this.rows.delete(name);
    }
    if (!backends.length) show(this.list, h("li", { class: "empty" }, "No backends are configured. llmproxy.yaml or labels of containers name them."));
    this.label.hidden = backends.length <= NEEDLE;
    this.sift();
  }

  sift() {
    const words = this.filter.value.trim().toLowerCase();
    for (const { view, element } of this.rows.values()) {
      const text = `${view.name} ${view.state} ${stateName(view.state)} ${view.models.join(" ")}`.toLowerCase();
      element.hidden = words !== "" && !this.label.hidden && !text.includes(words);
    }
  }

  tick() {
    for (const row of this.rows.values()) {
      const { state, in_flight: busy } = row.view;
      if (state !== "absent" && !(state === "ready" && busy)) row.tick();
    }
  }
}
