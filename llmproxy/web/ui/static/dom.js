// Elements from plain values. Text stays text: nothing here takes markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) add(element, child);
    else element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

export const h = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
export const s = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
export const byId = (id) => document.getElementById(id);

// Put these in the place of what is there, without a change where nothing has changed.
export function show(element, ...children) {
  const made = document.createDocumentFragment();
  add(made, children);
  const fresh = [...made.childNodes];
  const old = [...element.childNodes];
  if (fresh.length === old.length && fresh.every((node, place) => node.isEqualNode(old[place]))) return;
  element.replaceChildren(made);
}

export function say(text) {
  const place = byId("said");
  if (place) place.textContent = text;
}

// What was done, or why it was not, for some seconds; a failure stays until it is closed.
export function toast(text, { bad = false, hint = null } = {}) {
  const close = h("button", { type: "button", class: "quiet", "aria-label": "Close this message" }, "×");
  const box = h(
    "div",
    { class: bad ? "toast bad" : "toast", role: bad ? "alert" : "status" },
    h("div", null, text, hint ? h("p", { class: "faint" }, hint) : null),
    close,
  );
  close.addEventListener("click", () => box.remove());
  const all = byId("toasts");
  all.append(box);
  while (all.children.length > 4) all.firstChild.remove();
  if (!bad) setTimeout(() => box.remove(), 6000);
}
