import "./shell.js";
import { buttons } from "./actions.js";
import { ask, lines } from "./api.js";
import { pill, startup } from "./backends.js";
import { byId, h, say, show } from "./dom.js";
import { Store } from "./store.js";
import { bounds, tasks } from "./tasks.js";
import { about, duration, moment, rate, stateName } from "./words.js";

const name = decodeURIComponent(location.pathname.replace(/\/+$/, "").split("/").pop());
const store = new Store(name);
const box = byId("backend");
// What can be focused, opened or scrolled is made once, and not anew with each look.
const state = h("span");
const now = h("div", { class: "card now" });
const failure = h("div");
const several = h("div");
const again = h("p", { class: "faint" });
const facts = h("div");
let told = "";
const actions = buttons(store, () => store.backends[0]);
const head = h("div", { class: "title-row" }, h("h1", { id: "name" }, name), h("div", { class: "row" }, state, actions.element));
let begun = false;

// Of a progress bar, which draws over itself, its last state.
const plain = (line) => line.replace(/\r+$/, "").split("\r").pop();

const fact = (term, ...told) => (told.some(Boolean) ? [h("dt", null, term), h("dd", null, ...told)] : []);

function phases(start) {
  const parts = Object.entries(start.phases || {}).filter(([, seconds]) => seconds > 0);
  return parts.length ? h("span", { class: "faint" }, ` (${parts.map(([phase, seconds]) => `${phase} ${duration(seconds)}`).join(", ")})`) : null;
}

function tellFailure(view) {
  const failed = view.last_failure;
  const present = view.state === "failed";
  const about_it = failed ? JSON.stringify([failed, present]) : "";
  if (failed) {
    const details = [
      failed.at ? `at ${moment(failed.at)}` : "",
      failed.exit_code === null ? "" : `exit code ${failed.exit_code}`,
      failed.oom ? "out of memory" : "",
      present && view.retry_in ? `may be tried again in ${about(view.retry_in - (store.now() - store.at))}` : "",
    ];
    show(again, details.filter(Boolean).join(" · "));
  }
  if (about_it === told) return;
  told = about_it;
  failure.replaceChildren();
  if (!failed) return;
  const last = [].concat(failed.log_tail || []).join("\n");
  failure.append(
    h(
      "section",
      { class: present ? "card failure bad" : "card failure", "aria-labelledby": "failure-title" },
      h("h2", { id: "failure-title" }, present ? "The start failed" : "Its last failure"),
      h("p", { class: "cause" }, failed.message),
      failed.hint ? h("p", { class: "hint" }, h("b", null, "What helps: "), failed.hint) : null,
      again,
      last
        ? h("details", { open: present }, h("summary", null, "Its last lines"), h("pre", { class: "log", tabindex: 0 }, last.split("\n").map(plain).join("\n")))
        : null,
    ),
  );
}

function tell(view) {
  show(state, pill(view));
  const busy = [view.in_flight ? `${view.in_flight} in flight` : "", view.waiting ? `${view.waiting} waiting` : "", view.tokens_per_second ? rate(view.tokens_per_second) : ""];
  const why = (store.why || []).filter((line) => view.state !== "failed" || !line.startsWith("Requests are refused"));
  show(
    now,
    startup(view, store.now(), store.at),
    h("ul", { class: "why" }, why.map((line) => h("li", null, line))),
    busy.some(Boolean) ? h("p", { class: "sentence" }, busy.filter(Boolean).join(" · ")) : null,
  );
  tellFailure(view);
  show(several, tasks(view));
  const start = view.last_start;
  show(
    facts,
    h(
      "dl",
      { class: "card facts" },
      fact("Models", view.models.join(", ")),
      fact("Runs as", [view.runtime, view.container || view.service, view.run ? String(view.run).slice(0, 24) : ""].filter(Boolean).join(" · ")),
      view.replicas ? fact("Tasks allowed", bounds(view.replicas)) : fact("Address", view.address),
      fact("Needs", view.needs.why),
      fact("Remarks", view.needs.remarks.join(" ")),
      fact("State since", moment(view.since)),
      view.idle_in === null ? [] : fact("Leaves in", about(view.idle_in - (store.now() - store.at))),
      start ? fact("Last start", `${duration(start.seconds)}, ready at ${moment(start.at)}`, phases(start)) : [],
    ),
  );
}

store.addEventListener("news", () => {
  box.removeAttribute("aria-busy");
  if (store.gone) {
    show(box, h("h1", null, name), h("p", { class: "notice bad" }, "There is no such backend."));
    return;
  }
  const [view] = store.backends;
  if (!begun) {
    begun = true;
    box.replaceChildren(head, now, failure, several, facts);
  }
  actions.update();
  tell(view);
});
store.addEventListener("moved", ({ detail }) => {
  if (detail.backend !== name || detail.decision) return;
  say(`${name} is ${stateName(detail.to)}.`);
  // A new run has a new log.
  if (["starting", "waking"].includes(detail.to) && !reading) follow();
});
setInterval(() => {
  if (!document.hidden && begun && !store.gone) tell(store.backends[0]);
}, 1000);

// -- its log --------------------------------------------------------------------------------------------

const MOST_LINES = 3000;
const KEPT_LINES = 2000;
const log = byId("log");
const logState = byId("log-state");
const wanted = byId("follow");
let reading = null;
let kept = [];

function draw(fresh) {
  const lines = fresh.map(plain);
  const stuck = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  kept.push(...lines);
  if (kept.length > MOST_LINES) {
    kept = kept.slice(-KEPT_LINES);
    log.textContent = `${kept.join("\n")}\n`;
  } else {
    log.append(`${lines.join("\n")}\n`);
  }
  if (stuck) log.scrollTop = log.scrollHeight;
}

async function follow() {
  if (reading) reading.abort();
  const mine = (reading = new AbortController());
  kept = [];
  log.textContent = "";
  logState.textContent = "reading…";
  try {
    const answer = await ask(`api/backends/${encodeURIComponent(name)}/logs?tail=500&follow=1`, { signal: mine.signal });
    logState.textContent = "following";
    for await (const some of lines(answer)) draw(some);
    logState.textContent = kept.length ? "it has ended" : "nothing yet";
  } catch (error) {
    if (mine.signal.aborted) return;
    logState.textContent = error.status ? error.message : "connection lost";
  }
  if (reading === mine) reading = null;
}

function pause() {
  if (reading) reading.abort();
  reading = null;
}

wanted.addEventListener("change", () => {
  if (wanted.checked) follow();
  else {
    pause();
    logState.textContent = "paused";
  }
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) pause();
  else if (wanted.checked && !reading) follow();
});

store.begin();
if (!document.hidden) follow();
