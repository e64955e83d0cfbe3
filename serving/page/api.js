// Call the server: the session, the errors, and waiting out a restart. The token itself is kept in a cookie that no script can read.

const HERE = new URL(".", document.baseURI);
const WAIT_OUT_MS = 60_000;

/** Why a call failed: `code` is the name of the gRPC code, or OFFLINE. */
export class ApiError extends Error {
  constructor(status, { code = "UNKNOWN", message = `the server answered ${status}`, field = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, field });
  }
}

/**
 * What the page does about calls: `ask` for a token, note that a session has `begun`, show that the server is `away`.
 * @type {{ask: (wrong: boolean) => Promise<string | null>, begun: () => void, away: (is: boolean) => void}}
 */
export const hooks = { ask: async () => null, begun: () => {}, away: () => {} };

let asking = null;
// Counts the sessions, so that of several calls that are refused only the first asks.
let session = 0;

/**
 * What a call may have: parameters of the query, a body as it is or as JSON, its type, what aborts it, and whether it
 * is a read, which is repeated while the server restarts.
 * @typedef {{params?: Record<string, any>, json?: any, body?: any, type?: string, signal?: AbortSignal, read?: boolean}} Options
 */

/**
 * Make a call and return its JSON. Reads wait for a server that restarts; writes are never sent twice.
 * @param {string} verb
 * @param {string} path
 * @param {Options & {parse?: (text: string) => any}} [options]
 */
export async function call(verb, path, { params = {}, json, body, type, signal, read = verb === "GET", parse = JSON.parse } = {}) {
  const response = await send(verb, path, { params, json, body, type, signal, read });
  return parse(await response.text());
}

/**
 * Make a call and return the response, which is a success.
 * @param {string} verb
 * @param {string} path
 * @param {Options} [options]
 */
export async function send(verb, path, { params = {}, json, body, type, signal, read = verb === "GET" } = {}) {
  const url = new URL(path, HERE);
  for (const [name, value] of Object.entries(params)) {
    if (value === undefined || value === null || value === "") continue;
    for (const one of Array.isArray(value) ? value : [value]) url.searchParams.append(name, one);
  }
  const until = Date.now() + WAIT_OUT_MS;
  for (;;) {
    const used = session;
    try {
      const response = await once(verb, url, json === undefined ? body : JSON.stringify(json), json === undefined ? type : "application/json", signal);
      hooks.away(false);
      return response;
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (error.code === "UNAUTHENTICATED") {
        if (session === used) await (asking ??= begin().finally(() => (asking = null)));
        continue;
      }
      const restarts = error.code === "OFFLINE" || (error.code === "UNAVAILABLE" && error.status === 503);
      if (restarts) hooks.away(true);
      if (!restarts || !read || Date.now() > until) throw error;
      await new Promise((resolve) => setTimeout(resolve, 700));
      signal?.throwIfAborted();
    }
  }
}

/** Read an answer of JSON on a line each, and call `heard` with each; one that breaks off is asked for again. */
export async function lines(path, { params, signal }, heard) {
  const until = Date.now() + WAIT_OUT_MS;
  for (;;) {
    const response = await send("GET", path, { params, signal });
    try {
      let rest = "";
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const whole = (rest + part.value).split("\n");
        rest = whole.pop();
        for (const line of whole) {
          const said = JSON.parse(line);
          if (said.error) throw new ApiError(0, said.error);
          heard(said);
        }
      }
      return;
    } catch (error) {
      const broken = error.name === "TypeError" || error.code === "UNAVAILABLE";
      if (!broken) throw error;
      if (Date.now() > until) throw new ApiError(0, { code: "OFFLINE", message: "the server's answer broke off: is it running?" });
      await new Promise((resolve) => setTimeout(resolve, 700));
      signal?.throwIfAborted();
    }
  }
}

async function once(verb, url, body, type, signal, token) {
  const headers = { "X-Imagekin-Page": "1" };
  if (type) headers["Content-Type"] = type;
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(url, { method: verb, headers, body, signal, credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { code: "OFFLINE", message: "the server does not answer: is it running?" });
  }
  if (response.ok) return response;
  let said = {};
  try {
    said = await response.json();
  } catch {
    // A proxy's own page: the status says enough.
  }
  throw new ApiError(response.status, said);
}

/** Ask for tokens until one is accepted, which the server then keeps in a cookie of this browser. */
async function begin() {
  for (let wrong = false; ; wrong = true) {
    const token = await hooks.ask(wrong);
    if (!token) throw new ApiError(401, { code: "UNAUTHENTICATED", message: "this server wants a token: reload the page to give one" });
    try {
      await once("POST", new URL("v1/session", HERE), undefined, undefined, undefined, token);
      session += 1;
      return hooks.begun();
    } catch (error) {
      if (error.code !== "UNAUTHENTICATED") throw error;
    }
  }
}

/** Return the path of a collection's route. */
export const of = (collection, route = "") => `v1/collections/${encodeURIComponent(collection)}${route ? `/${route}` : ""}`;

/** Parse JSON and keep numbers that JavaScript would round as they were written, for writing them back. */
export function parseExactly(text) {
  // Too new for the type checker.
  const json = /** @type {any} */ (JSON);
  if (!json.rawJSON) return json.parse(text);
  return json.parse(text, (_, value, context) =>
    typeof value === "number" && String(value) !== context.source ? json.rawJSON(context.source) : value);
}
