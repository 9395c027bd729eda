// The tasks of a backend that runs as several: a Docker Swarm's service.

import { h } from "./dom.js";
import { count, plural } from "./words.js";

const TONES = { ready: "ready", starting: "starting", resting: "absent", leaving: "stopping" };
const MEANINGS = {
  starting: "It runs, and is not healthy, or not any more.",
  resting: "Nothing new for it: it is about to leave, or has been silent.",
  leaving: "The Swarm is ending it; what is in flight may finish.",
};

// How many of those that are wanted answer, beside the state.
export const ratio = (view) => (view.replicas && ["ready", "draining"].includes(view.state) ? ` ${view.replicas.ready}/${view.replicas.wanted}` : "");

// What those wait for that do not run.
export function pending({ replicas }) {
  if (!replicas || !replicas.pending) return "";
  const missing = Math.max(1, replicas.wanted - replicas.tasks.filter((task) => task.state !== "leaving").length);
  return `${plural(missing, "task waits", "tasks wait")}: ${replicas.pending}`;
}

export function bounds({ min, max, target_in_flight: each }) {
  const least = Math.max(1, min);
  return `${least === max ? count(max) : `${least} to ${max}`}, one for ${each === 1 ? "each request" : `each ${each} requests`}${min ? "" : "; none when nobody uses it"}`;
}

const cell = (name, kind, ...children) => h("td", { "data-name": name, class: kind }, ...children);

export function tasks(view) {
  const { replicas } = view;
  if (!replicas || !(replicas.tasks.length || replicas.wanted)) return null;
  const waits = pending(view);
  return h(
    "section",
    { "aria-labelledby": "tasks-title" },
    h("div", { class: "title-row" }, h("h2", { id: "tasks-title" }, "Tasks"), h("span", { class: "faint" }, `${replicas.ready} of ${replicas.wanted} ready`)),
    h(
      "div",
      { class: "card", id: "tasks" },
      replicas.tasks.length
        ? h(
            "table",
            { class: "cards" },
            h("thead", null, h("tr", null, ["State", "Node", "In flight", "Address", "Task"].map((name) => h("th", { scope: "col", class: name === "In flight" ? "number" : null }, name)))),
            h(
              "tbody",
              null,
              replicas.tasks.map((task) =>
                h(
                  "tr",
                  { "data-task": task.id },
                  cell("State", null, h("span", { class: `pill s-${TONES[task.state] || "absent"}`, title: MEANINGS[task.state] }, task.state)),
                  cell("Node", null, task.node || "–"),
                  cell("In flight", "number", count(task.in_flight)),
                  cell("Address", "path", task.address),
                  cell("Task", "path faint", h("span", { title: task.id }, task.id.slice(0, 12))),
                ),
              ),
            ),
          )
        : h("p", { class: "empty" }, "None runs yet."),
      waits ? h("p", { class: "small waits" }, waits) : null,
    ),
  );
}
