// Who used what: tokens, requests and GPU time by day, key and backend.

import "./shell.js";
import { get } from "./api.js";
import { byId, h, s, show } from "./dom.js";
import { count, duration, short } from "./words.js";

const HEIGHT = 180;
const MOST_ROWS = 50;

const form = byId("span");
const days = byId("by-day");
let daily = null;

const total = (row) => (row.prompt_tokens || 0) + (row.completion_tokens || 0);

// GPU time that nobody's request took: of what was started by hand, or ran on.
const nameOf = (name) => (name && name !== "-" ? name : "nobody");

function table(by, title, rows) {
  if (!rows.length) return h("p", { class: "empty" }, "Nothing in this time.");
  const sorted = [...rows].sort((one, other) => total(other) - total(one) || other.requests - one.requests);
  const most = Math.max(...sorted.map(total), 1);
  const gpu = sorted.some((row) => row.gpu_seconds !== null && row.gpu_seconds !== undefined);
  const columns = [
    [title, null, (row) => h("span", { class: "share" }, h("span", null, nameOf(row[by])), h("meter", { min: 0, max: most, value: total(row), "aria-label": `Share of the tokens of ${nameOf(row[by])}` }))],
    ["Requests", "number", (row) => count(row.requests)],
    ["Prompt", "number", (row) => short(row.prompt_tokens || 0)],
    ["Completion", "number", (row) => short(row.completion_tokens || 0)],
    ["Held", "number", (row) => (row.held_seconds >= 0.05 ? duration(row.held_seconds) : "")],
  ];
  if (gpu) columns.push(["GPU time", "number", (row) => (row.gpu_seconds ? duration(row.gpu_seconds) : "")]);
  return [
    h(
      "table",
      { class: "cards" },
      h("thead", null, h("tr", null, columns.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)))),
      h("tbody", null, sorted.slice(0, MOST_ROWS).map((row) => h("tr", null, columns.map(([name, kind, cell]) => h("td", { class: kind, "data-name": name }, cell(row)))))),
    ),
    sorted.length > MOST_ROWS ? h("p", { class: "faint small" }, `and ${sorted.length - MOST_ROWS} more; the CSV has all`) : null,
  ];
}

// A time is told as a day, or as POSIX seconds.
const dayOf = (time) => (typeof time === "number" ? new Date(time * 1000).toISOString() : String(time)).slice(0, 10);

// Every day of the time, those without requests too: a gap is news.
function calendar(answer) {
  const known = new Map(answer.rows.map((row) => [String(row.day).slice(0, 10), row]));
  const list = [];
  const date = new Date(`${dayOf(answer.since)}T00:00:00Z`);
  const last = dayOf(answer.until);
  for (let number = 0; number < 400; number += 1) {
    const day = date.toISOString().slice(0, 10);
    if (day > last) break;
    list.push(known.get(day) || { day, requests: 0, prompt_tokens: 0, completion_tokens: 0 });
    date.setUTCDate(date.getUTCDate() + 1);
  }
  return list;
}

function columns() {
  if (!daily) return;
  const width = Math.floor(days.clientWidth - 32);
  if (width <= 0) return;
  const list = calendar(daily);
  const most = Math.max(...list.map(total), 1);
  const step = width / list.length;
  const wide = Math.max(2, Math.min(56, step - 6));
  const room = HEIGHT - 40;
  const every = Math.ceil(56 / step);
  const drawing = s("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `Tokens by day. ${list.map((row) => `${row.day}: ${count(total(row))}`).join("; ")}.` });
  list.forEach((row, number) => {
    const x = number * step + (step - wide) / 2;
    const prompt = ((row.prompt_tokens || 0) / most) * room;
    const completion = ((row.completion_tokens || 0) / most) * room;
    const middle = number * step + step / 2;
    drawing.append(
      s(
        "g",
        { class: "day" },
        s("title", null, `${row.day}: ${count(row.requests)} requests, ${count(row.prompt_tokens || 0)} prompt and ${count(row.completion_tokens || 0)} completion tokens`),
        s("rect", { class: "hit", x: number * step, y: 0, width: step, height: HEIGHT - 20 }),
        s("rect", { class: "prompt", x: x.toFixed(1), y: (HEIGHT - 20 - prompt).toFixed(1), width: wide.toFixed(1), height: Math.max(prompt, 0).toFixed(1) }),
        s("rect", { class: "completion", x: x.toFixed(1), y: (HEIGHT - 20 - prompt - completion).toFixed(1), width: wide.toFixed(1), height: Math.max(completion, 0).toFixed(1) }),
        total(row) && step > 44 ? s("text", { class: "axis", x: middle.toFixed(1), y: (HEIGHT - 25 - prompt - completion).toFixed(1), "text-anchor": "middle" }, short(total(row))) : null,
        (list.length - 1 - number) % every === 0 ? s("text", { class: "axis", x: middle.toFixed(1), y: HEIGHT - 5, "text-anchor": "middle" }, row.day.slice(5)) : null,
      ),
    );
  });
  drawing.append(s("line", { class: "grid base", x1: 0, x2: width, y1: HEIGHT - 20, y2: HEIGHT - 20 }));
  show(days, drawing, h("ul", { class: "legend" }, h("li", null, h("i", { class: "swatch prompt" }), "prompt tokens"), h("li", null, h("i", { class: "swatch completion" }), "completion tokens")));
}

async function load() {
  const since = form.since.value;
  byId("csv").href = `/ui/api/usage?${new URLSearchParams({ by: "key,backend,day", since, format: "csv" })}`;
  byId("none").hidden = true;
  try {
    const [day, key, backend] = await Promise.all(["day", "key", "backend"].map((by) => get(`usage?${new URLSearchParams({ by, since })}`)));
    daily = day;
    columns();
    show(byId("by-key"), table("key", "Key", key.rows));
    show(byId("by-backend"), table("backend", "Backend", backend.rows));
    byId("usage").hidden = false;
  } catch (error) {
    byId("usage").hidden = true;
    byId("none").hidden = false;
    byId("none").textContent = error.status === 404 ? "This proxy keeps no account of usage." : error.message;
  }
  byId("usage").removeAttribute("aria-busy");
}

form.addEventListener("change", load);
form.addEventListener("submit", (event) => event.preventDefault());
new ResizeObserver(columns).observe(days);
load();
