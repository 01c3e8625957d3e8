// Dialogs, and short messages in the corner.

import { h, button, note } from "./dom.js";
import { t } from "./texts.js";

/**
 * A dialog with a form. `submit` is awaited; what it throws is shown in place and the dialog stays.
 * Gives back the dialog; `then` runs with what `submit` gave.
 */
export function dialog({ title, lead, body, action, kind = "primary", wide = false, submit, then }) {
  const problems = h("div", { "aria-live": "polite" });
  const go = action && h("button", { type: "submit", class: `button ${kind}` }, action);
  const id = `d${Math.random().toString(36).slice(2)}`;
  const element = h("dialog", { class: wide ? "wide" : "", "aria-labelledby": id });
  const close = () => element.close();
  const scrolling = h("div", { class: "dialog-body", tabIndex: -1 }, body, problems);
  const content = [
    h("header", { class: "dialog-head" },
      h("div", {}, h("h2", { id }, title), lead && h("p", {}, lead)),
      h("button", { type: "button", class: "button plain close", "aria-label": t("close"), onclick: close }, "×")),
    scrolling,
    h("footer", { class: "dialog-foot" }, button(action ? t("cancel") : t("close"), close), go),
  ];
  element.append(submit ? h("form", { onsubmit: run, noValidate: false }, content) : h("div", { class: "dialog-form" }, content));

  async function run(event) {
    event.preventDefault();
    problems.replaceChildren();
    go.disabled = true;
    try {
      const result = await submit();
      element.close();
      then?.(result);
    } catch (error) {
      problems.replaceChildren(problem(error));
      problems.scrollIntoView({ block: "nearest" });
    } finally {
      go.disabled = false;
    }
  }

  // What was wrong with what is not there any more.
  element.addEventListener("input", () => problems.replaceChildren());
  // Who has no wheel scrolls it by the arrow keys, where there is something to scroll and nothing in it to go to.
  const reach = () => {
    const isLong = scrolling.scrollHeight > scrolling.clientHeight;
    scrolling.tabIndex = isLong && !scrolling.querySelector("a, button, input, select, textarea, summary, [tabindex='0']") ? 0 : -1;
  };
  const watch = new ResizeObserver(reach);
  for (const part of [scrolling, ...scrolling.children]) watch.observe(part);
  element.addEventListener("close", () => { watch.disconnect(); element.remove(); });
  // A click beside it closes it.
  element.addEventListener("mousedown", (event) => {
    if (event.target === element) close();
  });
  document.body.append(element);
  element.showModal();
  element.action = go;
  return element;
}

/** What went wrong, with the places where there are some. */
export function problem(error) {
  const found = error.problem;
  const places = found?.errors ?? [];
  return note("bad",
    h("p", {}, error.message),
    places.length > 0 && h("ul", {}, places.map((place) => h("li", {}, h("b", {}, t("place", place)), " ", place.message))),
    found?.hint && h("p", { class: "small" }, found.hint));
}

/**
 * What a form says while it is filled in: `place` shows the nodes that `ask` gave for what stands there now,
 * never those of an earlier question that were late. `now` asks, `soon` asks when typing has paused.
 * What `ask` throws is shown by `failed`.
 */
export function answering(place, ask, { pause = 300, failed = problem } = {}) {
  let typing;
  let asked = 0;
  async function now() {
    clearTimeout(typing);
    asked += 1;
    const mine = asked;
    const nodes = await ask().catch((error) => [failed(error)]);
    if (mine === asked) place.replaceChildren(...nodes);
  }
  function soon() {
    clearTimeout(typing);
    asked += 1;
    typing = setTimeout(now, pause);
  }
  return { now, soon };
}

let corner = null;

/** Says something for some seconds. */
export function toast(children, tone = "") {
  if (!corner?.isConnected) {
    corner = h("div", { class: "toasts", role: "status", "aria-live": "polite" });
    document.body.append(corner);
  }
  const message = h("div", { class: `toast ${tone}` }, children);
  corner.append(message);
  // The newest are the ones to read.
  while (corner.childElementCount > 2) corner.firstElementChild.remove();
  setTimeout(() => message.remove(), 7000);
}

/** Does something and says in the corner if it failed. */
export async function attempt(doing) {
  try {
    return await doing();
  } catch (error) {
    toast(error.message, "bad");
    return undefined;
  }
}
