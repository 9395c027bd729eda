import "./shell.js";
import { Backends } from "./backends.js";
import { byId, say, show, h } from "./dom.js";
import { Gpus } from "./gpus.js";
import { drawOpen } from "./open.js";
import { Store } from "./store.js";
import { Timeline } from "./timeline.js";
import { stateName, tone } from "./words.js";

const store = new Store();
const backends = new Backends(store, byId("backends"), byId("filter"), byId("filter-label"));
const gpus = new Gpus(store, byId("gpus-section"), byId("gpus"));
const timeline = new Timeline(store, byId("timeline"), byId("events"));

const ORDER = ["ready", "starting", "waking", "sleeping", "draining", "stopping", "falling_asleep", "failed", "absent"];

function summary() {
  const by = new Map();
  let flying = 0;
  let waiting = 0;
  for (const view of store.backends) {
    by.set(view.state, (by.get(view.state) || 0) + 1);
    flying += view.in_flight;
    waiting += view.waiting;
  }
  const item = (number, words, kind) => h("span", { class: `sum ${kind}` }, h("b", null, number), ` ${words}`);
  show(
    byId("summary"),
    ORDER.filter((state) => by.has(state)).map((state) => item(by.get(state), stateName(state), `s-${tone(state)}`)),
    item(flying, "in flight", "plain"),
    item(waiting, "waiting", waiting ? "waits" : "plain"),
  );
}

function ticking() {
  backends.tick();
  if (store.open) drawOpen(byId("open-section"), byId("open"), store.open, store.now() - store.at);
}

store.addEventListener("news", () => {
  summary();
  backends.update();
  gpus.update();
  timeline.update();
  ticking();
});

store.addEventListener("moved", ({ detail }) => {
  if (!detail.decision && ["ready", "failed", "sleeping", "absent"].includes(detail.to)) say(`${detail.backend} is ${stateName(detail.to)}.`);
});

setInterval(() => {
  if (!document.hidden && store.at) ticking();
}, 1000);
store.begin();
