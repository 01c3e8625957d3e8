// What happens on the server, as it happens; and whether it is there.

import { address, get } from "./api.js";
import { h } from "./dom.js";
import { toast } from "./dialog.js";
import { t } from "./texts.js";

const NAMES = ["job", "base-model", "customized-model", "complete-model", "environment", "live-model"];
/** How long the server may be silent before it is said: a stream that was ended in good order is opened again at once. */
const PATIENCE = 2500;
/** Until the next attempt where the browser makes none of its own. */
const PAUSE = 3000;
const listeners = new Set();
let source = null;
let last = null;
let trying = null;
let silent = null;
let banner = null;

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

function end() {
  clearTimeout(trying);
  clearTimeout(silent);
  trying = silent = null;
  source?.close();
  source = null;
}

function open() {
  if (source) return;
  source = new EventSource(address("events", { last_event_id: last }));
  const note = (event) => (last = event.lastEventId || last);
  source.addEventListener("open", found);
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
    silent ??= setTimeout(lost, PATIENCE);
    // The browser tries again by itself, but for an answer that was a refusal.
    if (source?.readyState === EventSource.CLOSED) {
      source = null;
      // A server that began anew does not know the session.
      get("session").then((session) => session.open || location.reload()).catch(() => {});
      trying = setTimeout(() => document.hidden || open(), PAUSE);
    }
  });
}

/** The server has been silent for a while. */
function lost() {
  if (banner) return;
  banner = h("div", { class: "banner", role: "alert" }, t("connection.lost"));
  document.body.prepend(banner);
}

function found() {
  clearTimeout(silent);
  silent = null;
  if (!banner) return;
  banner.remove();
  banner = null;
  toast(t("connection.back"));
  // What was asked for meanwhile failed.
  tell("reset", {});
}
