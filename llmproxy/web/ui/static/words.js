// Numbers and states as a person says them.

export const GIB = 1024 ** 3;

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} m`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

// Of what counts down or up on the screen: no tenths that flicker.
export function about(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3570) return whole < 600 ? `${Math.floor(whole / 60)} m ${whole % 60} s` : `${Math.round(whole / 60)} m`;
  return duration(Math.round(whole / 60) * 60);
}

export function amount(value, unit) {
  if (unit === "fraction") return `${Math.round(value * 1000) / 10} %`;
  if (value >= 0.05 * GIB || value === 0) return `${(value / GIB).toFixed(1)} GiB`;
  return `${Math.round(value / 1024 ** 2)} MiB`;
}

export function count(number) {
  return number === null || number === undefined ? "–" : number.toLocaleString("en");
}

export function short(number) {
  if (number >= 1e9) return `${(number / 1e9).toFixed(1)} G`;
  if (number >= 1e6) return `${(number / 1e6).toFixed(1)} M`;
  if (number >= 1e4) return `${(number / 1e3).toFixed(number >= 1e5 ? 0 : 1)} k`;
  return count(Math.round(number));
}

export const rate = (value) => (value === null || value === undefined ? "" : `${value >= 100 ? Math.round(value) : value.toFixed(1)} tok/s`);

export const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

export function moment(at) {
  const date = new Date(at * 1000);
  const day = date.toDateString() === new Date().toDateString() ? "" : `${date.toLocaleDateString([], { month: "short", day: "numeric" })} `;
  return day + clock(at);
}

const STATES = {
  absent: "off",
  falling_asleep: "falling asleep",
  sleeping: "asleep",
};

export const stateName = (state) => STATES[state] || state;

// What a colour of the page stands for.
export function tone(state) {
  if (state === "waking") return "starting";
  if (state === "draining" || state === "falling_asleep") return "stopping";
  return state || "absent";
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
