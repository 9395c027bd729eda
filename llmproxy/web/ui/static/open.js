// Requests that wait or are in flight.

import { h, show } from "./dom.js";
import { about } from "./words.js";

const MOST = 50;

export function drawOpen(section, box, open, since) {
  section.hidden = !open || !open.length;
  if (section.hidden) {
    box.replaceChildren();
    return;
  }
  // Those who wait first, and of each kind the oldest first.
  const sorted = [...open].sort((one, other) => (one.state === other.state ? one.at - other.at : one.state === "waiting" ? -1 : 1));
  show(
    box,
    h(
      "table",
      { class: "cards" },
      h("thead", null, h("tr", null, ["State", "Age", "Backend", "Key", "Path", "Client"].map((name) => h("th", { scope: "col", class: name === "Age" ? "number" : null }, name)))),
      h(
        "tbody",
        null,
        sorted.slice(0, MOST).map((one) =>
          h(
            "tr",
            { "data-request": one.request_id },
            h("td", { "data-name": "State" }, h("span", { class: `pill ${one.state === "waiting" ? "s-starting" : "s-ready"}` }, one.state === "waiting" ? "waiting" : "in flight")),
            h("td", { class: "number", "data-name": "Age" }, about(one.age + since)),
            h("td", { "data-name": "Backend" }, one.backend || "–"),
            h("td", { "data-name": "Key" }, one.key || "–"),
            h("td", { class: "path", "data-name": "Path" }, `${one.method} ${one.path}`),
            h("td", { class: "faint", "data-name": "Client" }, one.client || ""),
          ),
        ),
      ),
    ),
    open.length > MOST ? h("p", { class: "faint small" }, `and ${open.length - MOST} more`) : null,
  );
}
