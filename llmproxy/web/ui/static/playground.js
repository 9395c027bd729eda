// A chat through the proxy itself, so that what a client would see is seen here: the wait for a cold model included.

import "./shell.js";
import { ask, get, lines } from "./api.js";
import { byId, h, say, show, toast } from "./dom.js";
import { about, count, duration, plural, stateName } from "./words.js";

const LOOK = 1000;
const MOST_TURNS = 200;

const form = byId("ask");
const talk = byId("talk");
const words = byId("words");
const send = byId("send");
const stop = byId("stop");
const cold = byId("cold");
const figures = byId("figures");
const model = byId("model");
let models = new Map();
let turns = [];
let running = null;

const toldOf = (one) => (one.meta && one.meta.llmproxy) || {};

async function loadModels() {
  const chosen = model.value || new URLSearchParams(location.search).get("model");
  try {
    const { data } = await (await ask("v1/models")).json();
    models = new Map(data.map((one) => [one.id, one]));
  } catch (error) {
    toast(error.message, { bad: true, hint: error.hint });
    return;
  }
  const names = [...models.keys()];
  const shown = [...model.options].map((option) => option.value);
  if (names.join("\n") !== shown.join("\n")) {
    model.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    if (models.has(chosen)) model.value = chosen;
  }
  tellState();
}

function tellState() {
  const one = models.get(model.value);
  const state = one && toldOf(one).state;
  const length = one && toldOf(one).context_length;
  const parts = [one ? (state === "ready" ? "ready" : `${stateName(state)}: a message starts it`) : "There are no models."];
  if (length) parts.push(`context ${count(length)}`);
  byId("model-state").textContent = parts.join(" · ");
  send.disabled = !one || running !== null;
}

// -- what is said -----------------------------------------------------------------------------------------

function bubble(role, text) {
  if (!turns.length) talk.replaceChildren();
  const said = h("div", { class: "text" }, text);
  const element = h("article", { class: `turn ${role}` }, h("p", { class: "by" }, role === "user" ? "You" : model.value), said);
  talk.append(element);
  while (talk.children.length > MOST_TURNS) talk.firstChild.remove();
  talk.scrollTop = talk.scrollHeight;
  return { element, said };
}

function showCold(beat) {
  if (!beat) {
    cold.hidden = true;
    cold.replaceChildren();
    return;
  }
  const { state, phase, elapsed, eta, progress, reason } = beat;
  const done = progress === null || progress === undefined ? "" : ` ${Math.round(progress * 100)} %`;
  cold.hidden = false;
  show(
    cold,
    h("span", { class: "phase" }, `${stateName(state)}${phase && phase !== state ? `: ${phase}${done}` : ""}`),
    h("span", { class: "eta" }, [`${about(elapsed)} so far`, eta === null || eta === undefined ? "" : `about ${about(eta)} left`].filter(Boolean).join(", ")),
    h("progress", { "aria-label": "How far the model is", max: 1, value: eta === null || eta === undefined ? null : Math.min(0.99, elapsed / (elapsed + eta || 1)).toFixed(3) }),
    reason ? h("span", { class: "faint" }, reason) : null,
  );
  byId("model-state").textContent = stateName(state);
  talk.scrollTop = talk.scrollHeight;
}

// The proxy's heartbeats come after some seconds; until then its operator's view tells the same.
function watch(route, began, signal) {
  const look = async () => {
    if (signal.aborted || running === null || running.heard) return;
    try {
      const view = await get(`backends/${encodeURIComponent(route)}`, { signal });
      const waits = view.waits && view.waits.why;
      if (running && !running.heard && view.state !== "ready") {
        showCold({ state: view.state, phase: waits ? "waiting for room" : view.phase, elapsed: (Date.now() - began) / 1000, eta: view.eta, progress: view.progress, reason: waits });
      }
    } catch {
      // The answer itself says what is wrong.
    }
    setTimeout(look, LOOK);
  };
  look();
}

// -- asking -------------------------------------------------------------------------------------------------

function body() {
  const system = byId("system").value.trim();
  const asked = {
    model: model.value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
    stream: true,
    stream_options: { include_usage: true },
  };
  const temperature = byId("temperature").value;
  const most = byId("max-tokens").value;
  if (temperature !== "") asked.temperature = Number(temperature);
  if (most !== "") asked.max_tokens = Number(most);
  return asked;
}

class Broken extends Error {
  constructor(error) {
    super(error.message || "The answer broke off.");
    this.hint = error.hint;
  }
}

async function stream(answer, one) {
  for await (const some of lines(answer)) {
    let fresh = "";
    for (const raw of some) {
      const line = raw.replace(/\r$/, "");
      if (line.startsWith(": llmproxy ")) {
        if (!one.first) showCold(JSON.parse(line.slice(11)));
      } else if (line.startsWith("data: ") && line !== "data: [DONE]") {
        const told = JSON.parse(line.slice(6));
        if (told.error) throw new Broken(told.error);
        one.usage = told.usage || one.usage;
        const delta = (told.choices && told.choices[0] && told.choices[0].delta) || {};
        const thought = delta.reasoning_content || delta.reasoning;
        if (thought) one.think(thought);
        if (thought || delta.content) one.begin();
        fresh += delta.content || "";
      }
    }
    if (fresh) one.write(fresh);
  }
}

function figuresOf(one) {
  const end = performance.now();
  const parts = [];
  if (one.first) parts.push(`first word after ${duration((one.first - one.began) / 1000)}`);
  const made = one.usage && one.usage.completion_tokens;
  if (made) {
    parts.push(plural(made, "token"));
    const seconds = (end - one.first) / 1000;
    if (made > 1 && seconds > 0.05) parts.push(`${((made - 1) / seconds).toFixed(1)} tok/s`);
  }
  figures.textContent = parts.join(" · ");
}

class Answer {
  constructor() {
    this.began = performance.now();
    this.first = 0;
    this.text = "";
    this.usage = null;
    this.heard = false;
    this.abort = new AbortController();
    const { element, said } = bubble("assistant", "");
    this.element = element;
    this.said = said;
    this.thoughts = null;
    element.classList.add("busy");
  }

  begin() {
    if (this.first) return;
    this.first = performance.now();
    this.heard = true;
    showCold(null);
  }

  write(text) {
    this.text += text;
    const stuck = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
    this.said.append(text);
    if (stuck) talk.scrollTop = talk.scrollHeight;
  }

  think(text) {
    if (!this.thoughts) {
      this.thoughts = h("div", { class: "text" });
      this.said.before(h("details", { class: "thoughts" }, h("summary", null, "Thoughts"), this.thoughts));
    }
    this.thoughts.append(text);
  }

  fail(error) {
    this.element.classList.add("failed");
    this.element.append(h("p", { class: "wrong", role: "alert" }, error.message), error.hint ? h("p", { class: "faint" }, error.hint) : "");
    talk.scrollTop = talk.scrollHeight;
  }
}

async function perform() {
  const text = words.value.trim();
  if (!text || running || !model.value) return;
  bubble("user", text);
  turns.push({ role: "user", content: text });
  words.value = "";
  figures.textContent = "";
  const one = (running = new Answer());
  send.disabled = true;
  stop.hidden = false;
  const route = toldOf(models.get(model.value)).route;
  if (route) watch(route, Date.now(), one.abort.signal);
  try {
    await stream(await ask("v1/chat/completions", { method: "POST", body: body(), signal: one.abort.signal }), one);
    figuresOf(one);
    say("The answer is complete.");
  } catch (error) {
    if (one.abort.signal.aborted) {
      one.element.append(h("p", { class: "faint" }, "Stopped."));
      figuresOf(one);
    } else {
      one.fail(error instanceof TypeError ? new Error("The connection to the proxy was lost.") : error);
    }
  }
  one.element.classList.remove("busy");
  if (one.text) turns.push({ role: "assistant", content: one.text });
  else turns.pop();
  running = null;
  stop.hidden = true;
  showCold(null);
  loadModels();
  if (document.activeElement === document.body || document.activeElement === stop) words.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  perform();
});
words.addEventListener("keydown", (event) => {
  // On a touch screen there is a button, and Enter is the only way to a new line.
  const sends = event.ctrlKey || event.metaKey || !(event.shiftKey || matchMedia("(pointer: coarse)").matches);
  if (event.key === "Enter" && sends && !event.isComposing) {
    event.preventDefault();
    perform();
  }
});
stop.addEventListener("click", () => running && running.abort.abort());
byId("clear").addEventListener("click", () => {
  if (running) running.abort.abort();
  turns = [];
  figures.textContent = "";
  talk.replaceChildren(h("p", { class: "empty" }, "Ask something. A cold model starts by itself; how far it is shows here."));
  words.focus();
});
byId("settings").addEventListener("submit", (event) => event.preventDefault());
model.addEventListener("change", tellState);
setInterval(() => {
  if (!document.hidden && running === null) loadModels();
}, 5000);
loadModels();
words.focus();
