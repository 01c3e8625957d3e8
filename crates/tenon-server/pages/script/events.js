// What happens on the server, as it happens.

import { address } from "./api.js";

const NAMES = ["job", "base-model", "customized-model", "complete-model", "environment", "live-model"];
const listeners = new Set();
let source = null;
let last = null;

/** Calls back with a name and what happened, until what is given back is called. */
export function listen(names, listener) {
  const entry = { names, listener };
  listeners.add(entry);
  return () => listeners.delete(entry);
}

function tell(name, data) {
  for (const { names, listener } of listeners) {
    if (name === "reset" || names.includes(name)) listener(name, data);
  }
}

/** Begins to listen; while the page is out of sight it does not, and then catches up. */
export function begin() {
  document.addEventListener("visibilitychange", () => (document.hidden ? end() : open()));
  open();
}

export function end() {
  source?.close();
  source = null;
}

function open() {
  if (source) return;
  source = new EventSource(address("events", { last_event_id: last }));
  const note = (event) => (last = event.lastEventId || last);
  source.addEventListener("hello", note);
  source.addEventListener("reset", (event) => {
    note(event);
    tell("reset", {});
  });
  for (const name of NAMES) {
    source.addEventListener(name, (event) => {
      note(event);
      tell(name, JSON.parse(event.data));
    });
  }
  source.addEventListener("error", () => {
    // The browser tries again by itself, but for an answer that was a refusal.
    if (source?.readyState === EventSource.CLOSED) {
      source = null;
      setTimeout(() => document.hidden || open(), 5000);
    }
  });
}
