// Buttons that do something to a backend.

import { act } from "./api.js";
import { h, toast } from "./dom.js";
import { plural } from "./words.js";

const LABELS = { start: "Start", stop: "Stop", sleep: "Sleep", wake: "Wake", restart: "Try again", reset: "Reset" };
const TELLS = {
  restart: "Forget the failure and start it now",
  reset: "Forget the failure; the next request starts it",
  sleep: "Free most of its GPU memory; it is back in seconds",
};

// What can be done to a backend as it is.
export function verbs(view) {
  if (view.runtime === "url") return [];
  const sleeps = view.needs.sleep.length > 0;
  switch (view.state) {
    case "absent":
      return view.waits ? ["stop"] : ["start"];
    case "failed":
      return ["restart", "reset"];
    case "ready":
      return sleeps ? ["sleep", "stop"] : ["stop"];
    case "sleeping":
      return ["wake", "stop"];
    case "falling_asleep":
    case "stopping":
      return ["start"];
    default:
      return ["stop"];
  }
}

// Ask what becomes of the requests in flight: "" (they finish), "force", or null (nothing is done).
function question(view) {
  return new Promise((resolve) => {
    const answer = (value) => () => {
      dialog.close();
      resolve(value);
    };
    const requests = plural(view.in_flight, "request");
    const dialog = h(
      "dialog",
      { "aria-labelledby": "stop-title" },
      h("h2", { id: "stop-title" }, `Stop ${view.name}?`),
      h("p", null, `It is answering ${requests} at present.`),
      h(
        "div",
        { class: "row end" },
        h("button", { type: "button", onclick: answer(null) }, "Cancel"),
        h("button", { type: "button", class: "bad", onclick: answer("force") }, "Break off and stop now"),
        h("button", { type: "button", class: "main", autofocus: true, onclick: answer("") }, "Stop when they are done"),
      ),
    );
    dialog.addEventListener("cancel", () => resolve(null));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  });
}

async function perform(store, view, verb) {
  let query = "";
  if (verb === "stop" && view.in_flight > 0) {
    const chosen = await question(view);
    if (chosen === null) return;
    query = chosen === "force" ? "?force=1" : "";
  }
  try {
    await act(view.name, verb, query);
  } catch (error) {
    toast(error.message, { bad: true, hint: error.hint });
  }
  store.soon();
}

// The buttons for a backend; what was focused stays so, though the buttons change.
export function buttons(store, latest) {
  const box = h("div", { class: "actions", role: "group" });
  let shown = "";
  return {
    element: box,
    update() {
      const view = latest();
      const wanted = verbs(view);
      if (wanted.join() === shown) return;
      shown = wanted.join();
      const focused = box.contains(document.activeElement);
      box.setAttribute("aria-label", `What to do with ${view.name}`);
      box.replaceChildren(
        ...wanted.map((verb) =>
          h(
            "button",
            {
              type: "button",
              "data-verb": verb,
              title: TELLS[verb],
              "aria-label": `${LABELS[verb]} ${view.name}`,
              class: verb === "start" || verb === "wake" || verb === "restart" ? "go" : "",
              async onclick(event) {
                // Not disabled meanwhile: that would take the focus away from whoever uses the keyboard.
                const button = event.currentTarget;
                if (button.getAttribute("aria-busy")) return;
                button.setAttribute("aria-busy", "true");
                await perform(store, latest(), verb);
                button.removeAttribute("aria-busy");
              },
            },
            LABELS[verb],
          ),
        ),
      );
      if (focused && box.firstChild) box.firstChild.focus();
    },
  };
}
