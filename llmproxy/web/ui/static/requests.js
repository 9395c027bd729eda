// What was asked and what came of it, a page at a time.

import "./shell.js";
import { get } from "./api.js";
import { byId, h, show } from "./dom.js";
import { drawOpen } from "./open.js";
import { count, duration, moment, rate } from "./words.js";

const PAGE = 50;
const EVERY = 4000;

const form = byId("filters");
const finished = byId("finished");
const newest = byId("newest");
const older = byId("older");
let before = null;
let next = null;
let asked = 0;

const GOOD = { ok: "s-ready", refused: "s-starting", client_gone: "s-stopping" };
const OUTCOMES = { client_gone: "client left", backend_died: "backend died" };

const COLUMNS = [
  ["When", "", (one) => h("time", { title: new Date(one.at * 1000).toISOString() }, moment(one.at))],
  ["Outcome", "", (one) => h("span", { class: `pill ${GOOD[one.outcome] || "s-failed"}` }, OUTCOMES[one.outcome] || one.outcome, one.status && one.outcome !== "ok" ? ` ${one.status}` : "")],
  ["Backend", "", (one) => one.backend || "–"],
  ["Key", "", (one) => one.key || "–"],
  ["Path", "path", (one) => `${one.method} ${one.path}`],
  ["Held", "number", (one) => (one.held >= 0.05 ? duration(one.held) : "")],
  ["First byte", "number", (one) => (one.first_byte === null ? "" : duration(one.first_byte))],
  ["Took", "number", (one) => duration(one.seconds)],
  ["Tokens", "number", tokens],
  ["Speed", "number", (one) => rate(speed(one))],
];

// An answer that came in one piece took its time before its first byte.
function speed(one) {
  if (one.tokens_per_second === null || one.seconds - one.first_byte > 0.05) return one.tokens_per_second;
  const worked = one.seconds - (one.held || 0);
  return worked > 0.05 ? one.completion_tokens / worked : null;
}

function tokens(one) {
  if (one.prompt_tokens === null && one.completion_tokens === null) return "";
  const told = `${count(one.prompt_tokens)} → ${count(one.completion_tokens)}`;
  return one.estimated ? h("span", { title: "estimated" }, `~ ${told}`) : told;
}

function draw(answer) {
  finished.removeAttribute("aria-busy");
  const rows = answer.finished;
  if (!rows.length) {
    show(finished, h("p", { class: "empty" }, before === null ? "No request has finished yet." : "There are no older ones."));
    return;
  }
  show(
    finished,
    h(
      "table",
      { class: "cards wide" },
      h("thead", null, h("tr", null, COLUMNS.map(([name, kind]) => h("th", { scope: "col", class: kind || null }, name)))),
      h(
        "tbody",
        null,
        rows.map((one) => h("tr", { "data-request": one.request_id }, COLUMNS.map(([name, kind, cell]) => h("td", { class: kind || null, "data-name": name }, cell(one))))),
      ),
    ),
  );
}

async function load() {
  const mine = ++asked;
  const query = new URLSearchParams({ limit: PAGE });
  for (const [name, value] of new FormData(form)) if (value.trim()) query.set(name, value.trim());
  if (before !== null) query.set("before", before);
  try {
    const answer = await get(`requests?${query}`);
    if (mine !== asked) return;
    next = answer.next;
    draw(answer);
    drawOpen(byId("open-section"), byId("open"), answer.open, 0);
  } catch (error) {
    if (mine !== asked) return;
    const words = error.status === 404 ? "This proxy keeps no list of requests." : error.message;
    finished.removeAttribute("aria-busy");
    show(finished, h("p", { class: "empty" }, words));
    next = null;
  }
  newest.disabled = before === null;
  older.disabled = next === null || next === undefined;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  before = null;
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value.trim()));
  history.replaceState(null, "", String(query) ? `?${query}` : location.pathname);
  load();
});
form.addEventListener("change", () => form.requestSubmit());
newest.addEventListener("click", () => {
  before = null;
  load();
});
older.addEventListener("click", () => {
  before = next;
  load();
  scrollTo({ top: 0 });
});

async function begin() {
  try {
    const { backends } = await get("backends");
    for (const view of backends) form.backend.append(h("option", null, view.name));
  } catch {
    // The list does without.
  }
  for (const [name, value] of new URLSearchParams(location.search)) if (form.elements[name]) form.elements[name].value = value;
  await load();
  setInterval(() => {
    // The first page is live; older ones stay as they are while they are read.
    if (!document.hidden && before === null) load();
  }, EVERY);
}

begin();
