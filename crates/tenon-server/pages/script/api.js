// Requests to the server, and its problems as errors.

import { t } from "./texts.js";

const BASE = new URL("api/v1/", document.baseURI);
/** What starts work, or makes something: it gets a key. */
const STARTS = /^(savings|deployments|merges|blends|combinations|ggufs|base-models|customized-models|environments|.*\/(retry|rebuild))$/;
let csrf = null;
let onUnauthorized = () => {};

/** A request that ended badly: `problem` is what the server said. */
export class ApiError extends Error {
  constructor(problem) {
    super(problem.detail || problem.title);
    this.problem = problem;
  }
}

export function whenUnauthorized(listener) {
  onUnauthorized = listener;
}

/** The session: opens one with a token, or looks whether there is one. */
export async function session(token) {
  const found = token === undefined ? await get("session") : await send("POST", "session", { token });
  csrf = found.csrf;
  return found;
}

export async function endSession() {
  await send("DELETE", "session");
  csrf = null;
}

/** Address of something of the interface. */
export function address(path, query = {}) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

/** Part of a path. */
export const part = encodeURIComponent;

export async function get(path, query, as = "json") {
  return read(await request(address(path, query), {}), as);
}

/** Sends what changes something. What starts work gets a key, so that sending it twice does it once. */
export async function send(method, path, body, query) {
  const headers = {};
  if (csrf) headers["X-CSRF-Token"] = csrf;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method === "POST" && STARTS.test(path) && !body?.dry_run) headers["Idempotency-Key"] = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  const options = { method, headers, body: body === undefined ? undefined : JSON.stringify(body) };
  return read(await request(address(path, query), options), "json");
}

/** A request as it is, with what a session must show; its answer unread. */
export function raw(url, { headers, ...options }) {
  return request(url, { ...options, headers: csrf && options.method !== "GET" ? { ...headers, "X-CSRF-Token": csrf } : headers });
}

/** Sends files, and tells how far that is. */
export function upload(path, query, files, advanced) {
  const body = new FormData();
  for (const file of files) body.append("file", file, file.name);
  const asked = new XMLHttpRequest();
  asked.open("POST", address(path, query));
  if (csrf) asked.setRequestHeader("X-CSRF-Token", csrf);
  asked.upload.addEventListener("progress", (event) => advanced(event.loaded, event.total));
  return new Promise((done, failed) => {
    const unreachable = () => failed(new ApiError({ code: "unreachable", title: t("error.unreachable"), detail: t("error.unreachable") }));
    asked.addEventListener("error", unreachable);
    asked.addEventListener("load", () => {
      const answer = (() => { try { return JSON.parse(asked.responseText); } catch { return { title: asked.statusText, code: "internal", detail: `HTTP ${asked.status}` }; } })();
      if (asked.status === 401) onUnauthorized();
      if (asked.status < 300) done(answer);
      else failed(new ApiError(answer));
    });
    asked.send(body);
  });
}

async function request(url, options) {
  try {
    return await fetch(url, { credentials: "same-origin", ...options });
  } catch {
    throw new ApiError({ code: "unreachable", title: t("error.unreachable"), detail: t("error.unreachable") });
  }
}

async function read(response, as) {
  if (response.ok) {
    if (response.status === 204) return null;
    return as === "text" ? response.text() : response.json();
  }
  const problem = await response.json().catch(() => ({ title: response.statusText, code: "internal", detail: `HTTP ${response.status}` }));
  if (response.status === 401 && !String(response.url).endsWith("/session")) onUnauthorized();
  throw new ApiError(problem);
}
