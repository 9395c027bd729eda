// What the proxy is like at present: asked for at once when an event tells of a change, and now and then for the
// counts that no event tells of. Nothing is asked while nobody looks.

import { Refused, ahead, get } from "./api.js";
import { byId } from "./dom.js";

const MOST_EVENTS = 2000;
const MANY = 50;

export class Store extends EventTarget {
  // only: the one backend that is looked at; null: all of them, with GPUs, leases and open requests.
  constructor(only = null) {
    super();
    this.only = only;
    this.backends = [];
    this.gpus = null;
    this.leases = [];
    this.open = null;
    this.events = [];
    this.at = 0;
    this.gone = false;
    this._busy = false;
    this._again = false;
    this._timer = null;
    this._last = 0;
    this._source = null;
  }

  now() {
    return Date.now() / 1000 + ahead();
  }

  begin() {
    document.addEventListener("visibilitychange", () => this._look());
    addEventListener("pagehide", () => this._leave());
    addEventListener("pageshow", (event) => event.persisted && this._look());
    this._look();
  }

  // Something was done: see what came of it.
  soon() {
    this._plan(this.backends.length > MANY ? 1000 : 120);
  }

  _look() {
    if (document.hidden) this._leave();
    else {
      this._connect();
      this._plan(0);
    }
  }

  // A browser has few connections for each host: a page that nobody sees takes none.
  _leave() {
    if (this._source) this._source.close();
    this._source = null;
    clearTimeout(this._timer);
    this._timer = null;
  }

  _address() {
    return this.only === null ? "/ui/api/events" : `/ui/api/events?backend=${encodeURIComponent(this.only)}`;
  }

  _connect() {
    if (this._source || this.gone) return;
    const source = (this._source = new EventSource(this._address()));
    source.onopen = () => {
      // All that is remembered comes anew.
      this.events = [];
      this._live(true);
    };
    source.onmessage = (message) => {
      const event = JSON.parse(message.data);
      this.events.push(event);
      if (this.events.length > MOST_EVENTS) this.events.splice(0, MOST_EVENTS / 4);
      if (event.at > this.now() - 5) this.dispatchEvent(new CustomEvent("moved", { detail: event }));
      this.soon();
    };
    source.onerror = () => {
      this._live(false);
      if (source.readyState === EventSource.CLOSED && this._source === source) {
        // Refused, and not only broken off: asking tells why, and leads to the sign-in where that is it.
        this._source = null;
        setTimeout(() => !document.hidden && this._connect(), 3000);
      }
    };
  }

  _live(on) {
    const place = byId("live");
    if (!place) return;
    place.hidden = false;
    place.className = on ? "live on" : "live off";
    place.textContent = on ? "Live" : "Connection lost";
  }

  _plan(wait) {
    if (document.hidden) return;
    if (this._busy) {
      this._again = this._again || wait < 1500;
      return;
    }
    const due = Math.max(Date.now() + wait, this._last + (this.backends.length > MANY ? 1000 : 250));
    if (this._timer !== null && this._due <= due) return;
    clearTimeout(this._timer);
    this._due = due;
    this._timer = setTimeout(() => this._refresh(), Math.max(0, due - Date.now()));
  }

  async _refresh() {
    this._timer = null;
    this._busy = true;
    this._again = false;
    this._last = Date.now();
    try {
      await (this.only === null ? this._all() : this._one());
      this.at = this.now();
      this.dispatchEvent(new Event("news"));
    } catch (error) {
      if (error instanceof Refused && error.status === 404 && this.only !== null) {
        this.gone = true;
        this.dispatchEvent(new Event("news"));
      } else if (!(error instanceof Refused || error instanceof TypeError)) {
        throw error;
      }
    } finally {
      this._busy = false;
      this._plan(this._again ? 120 : this.backends.length > MANY ? 5000 : 2000);
    }
  }

  async _one() {
    const view = await get(`backends/${encodeURIComponent(this.only)}/why`);
    this.backends = [view.backend];
    this.why = view.why;
  }

  async _all() {
    const optional = (asked) => asked.catch(() => null);
    const [backends, gpus, leases, requests] = await Promise.all([
      get("backends"),
      optional(get("gpus")),
      optional(get("leases")),
      this.open === undefined ? null : get("requests?limit=1").catch((error) => ({ missing: error.status === 404 })),
    ]);
    this.backends = backends.backends;
    this.gpus = gpus && gpus.gpus;
    this.notMeasured = gpus && gpus.not_measured;
    this.leases = (leases && leases.leases) || [];
    // A proxy that has no such list is not asked again.
    if (requests && requests.missing) this.open = undefined;
    else if (requests && requests.open) this.open = requests.open;
  }
}
