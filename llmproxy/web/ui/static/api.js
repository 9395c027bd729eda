// Asks the proxy, under the session's cookie.

export class Refused extends Error {
  constructor(status, error) {
    super((error && error.message) || `The proxy answered with status ${status}.`);
    this.status = status;
    this.code = error && error.code;
    this.hint = error && error.hint;
  }
}

// Seconds that the proxy's clock is ahead of this one; of less than two nothing can be said.
let skew = 0;
export const ahead = () => skew;

function compare(response) {
  const told = Date.parse(response.headers.get("date") || "");
  if (Number.isNaN(told)) return;
  const found = told / 1000 + 0.5 - Date.now() / 1000;
  skew = Math.abs(found) < 2 ? 0 : found;
}

async function refusal(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // It was no JSON: the status has to do.
  }
  return new Refused(response.status, error);
}

export async function ask(path, { method = "GET", body, signal } = {}) {
  const options = { method, signal, headers: {}, cache: "no-store", credentials: "same-origin" };
  if (method !== "GET") {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body || {});
  }
  const response = await fetch(`/ui/${path}`, options);
  compare(response);
  if (response.status === 401 && path !== "session") {
    // The session is over: the same address shows the sign-in.
    location.reload();
    return new Promise(() => {});
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

export const get = async (path, options) => (await ask(`api/${path}`, options)).json();

export const act = (name, verb, query = "") =>
  ask(`api/backends/${encodeURIComponent(name)}/${verb}${query}`, { method: "POST" });

// The lines of an answer that goes on, as they come.
export async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      // All that came at once, so that whoever shows them draws once.
      if (parts.length) yield parts;
    }
    if (rest) yield [rest];
  } finally {
    reader.cancel().catch(() => {});
  }
}
