// Who has the memory of each GPU, as a picture and as words.

import { h, s, show } from "./dom.js";
import { amount, stateName, tone } from "./words.js";

const HEIGHT = 52;
const MOST_NAMED = 24;

// A backend keeps its colour for as long as the page is open.
const colours = new Map();
export function colour(name) {
  if (!colours.has(name)) colours.set(name, colours.size % 8);
  return `c${colours.get(name)}`;
}

function parts(gpu, leases) {
  const found = gpu.claims.map((claim) => ({
    name: claim.name,
    memory: claim.memory,
    class: `${colour(claim.name)} t-${tone(claim.state)}`,
    note: claim.state ? stateName(claim.state) : "leaving",
  }));
  const mine = leases.filter((lease) => lease.gpu === gpu.gpu && lease.held);
  let lent = gpu.lent;
  for (const lease of mine) {
    const memory = gpu.unit === "bytes" && lease.memory <= 1 ? lease.memory * gpu.total : lease.memory;
    const taken = mine.length === 1 ? gpu.lent : Math.min(memory, lent);
    lent -= taken;
    found.push({ name: lease.note || lease.id, memory: taken, class: "lease", note: `lease ${lease.id}` });
  }
  if (gpu.lent && !mine.length) found.push({ name: "lent", memory: gpu.lent, class: "lease", note: "leases" });
  if (gpu.unclaimed > 0) found.push({ name: "free", memory: gpu.unclaimed, class: "free", note: "" });
  if (gpu.reserve > 0) found.push({ name: "reserve", memory: gpu.reserve, class: "reserve", note: "kept free" });
  return found.filter((part) => part.memory > 0);
}

function bar(gpu, found, width) {
  const total = Math.max(gpu.total, found.reduce((sum, part) => sum + part.memory, 0)) || 1;
  const drawing = s("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true", focusable: "false" });
  let x = 0;
  for (const part of found) {
    const wide = (part.memory / total) * width;
    const inner = Math.max(1, wide - 2);
    const room = Math.floor((inner - 18) / 7.2);
    const words = part.name.length <= room ? part.name : room > 4 ? `${part.name.slice(0, room - 1)}…` : "";
    const size = amount(part.memory, gpu.unit);
    drawing.append(
      s(
        "g",
        { class: `part ${part.class}` },
        s("title", null, `${part.name}: ${size}${part.note ? ` (${part.note})` : ""}`),
        s("rect", { x: (x + 1).toFixed(1), y: 1, width: inner.toFixed(1), height: HEIGHT - 2, rx: 5 }),
        words ? s("text", { x: (x + 11).toFixed(1), y: 22, class: "label" }, words) : null,
        words && size.length <= room ? s("text", { x: (x + 11).toFixed(1), y: 39, class: "size" }, size) : null,
      ),
    );
    x += wide;
  }
  return drawing;
}

function legend(gpu, found) {
  const items = found.slice(0, MOST_NAMED).map((part) =>
    h(
      "li",
      null,
      s("svg", { width: 12, height: 12, "aria-hidden": "true" }, s("g", { class: `part ${part.class}` }, s("rect", { x: 0.5, y: 0.5, width: 11, height: 11, rx: 3 }))),
      h("span", null, part.name),
      h("span", { class: "faint" }, [amount(part.memory, gpu.unit), part.note].filter(Boolean).join(", ")),
    ),
  );
  if (found.length > MOST_NAMED) items.push(h("li", { class: "faint" }, `and ${found.length - MOST_NAMED} more`));
  return h("ul", { class: "parts" }, items);
}

export class Gpus {
  constructor(store, section, box) {
    this.store = store;
    this.section = section;
    this.box = box;
    this.width = 0;
    new ResizeObserver(() => this.update()).observe(box);
  }

  update() {
    const { gpus, leases, notMeasured } = this.store;
    // In the order in which they are configured, and not in which they first had memory.
    for (const view of this.store.backends) colour(view.name);
    this.section.hidden = !gpus || !gpus.length;
    if (this.section.hidden) return;
    const style = getComputedStyle(this.box);
    const width = Math.floor(this.box.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
    if (width <= 0) return;
    show(
      this.box,
      gpus.map((gpu) => {
        const found = parts(gpu, leases);
        const measured = gpu.measured && gpu.measured.total ? `, ${amount(gpu.measured.free, "bytes")} free as measured` : "";
        return h(
          "figure",
          { class: "gpu" },
          h("figcaption", null, h("b", null, `GPU ${gpu.gpu}`), h("span", { class: "faint" }, gpu.unit === "bytes" ? `${amount(gpu.total, gpu.unit)}${measured}` : `shares of it${measured}`)),
          bar(gpu, found, width),
          legend(gpu, found),
        );
      }),
      notMeasured && gpus.some((gpu) => gpu.unit === "bytes") ? h("p", { class: "faint small" }, `Not measured: ${notMeasured}`) : null,
    );
  }
}
