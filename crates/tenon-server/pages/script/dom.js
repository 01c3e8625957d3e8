// Elements without markup in strings: what strangers wrote is text, and stays it.

/** An element. Properties that begin with `on` listen; `class`, `data-*`, `aria-*` and the like are attributes. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes("-") && name !== "list" && name !== "form") element[name] = value;
    else element.setAttribute(name === "class" ? "class" : name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

const SHAPES = {
  complete: "M12 3 4 7v10l8 4 8-4V7zM4 7l8 4 8-4M12 11v10",
  customized: "M4 6h10M18 6h2M4 12h4M12 12h8M4 18h8M16 18h4M16 4v4M10 10v4M14 16v4",
  base: "M4 17V7c0-1.7 3.6-3 8-3s8 1.3 8 3v10c0 1.7-3.6 3-8 3s-8-1.3-8-3zM4 7c0 1.7 3.6 3 8 3s8-1.3 8-3M4 12c0 1.7 3.6 3 8 3s8-1.3 8-3",
  live: "M12 13.5a1.5 1.5 0 1 0 0-3 1.5 1.5 0 0 0 0 3zM8.2 15.8a5.4 5.4 0 0 1 0-7.6M15.8 8.2a5.4 5.4 0 0 1 0 7.6M5.3 18.7a9.5 9.5 0 0 1 0-13.4M18.7 5.3a9.5 9.5 0 0 1 0 13.4",
  environments: "M4 4h16v6H4zM4 14h16v6H4zM8 7h.01M8 17h.01M12 7h4M12 17h4",
  results: "M4 8h16v11H4zM4 8l3-4h10l3 4M12 11v5M9.5 13.8 12 16.3l2.5-2.5",
  jobs: "M4 6h.01M8 6h12M4 12h.01M8 12h12M4 18h.01M8 18h12",
  search: "M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14zM20 20l-4-4",
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
};

/** A drawing of a few lines; for the eye only. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const attributes = { viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": "1.8", "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true" };
  for (const [key, value] of Object.entries(attributes)) svg.setAttribute(key, value);
  path.setAttribute("d", SHAPES[name]);
  svg.append(path);
  return svg;
}

/** A button. */
export function button(label, onclick, properties = {}) {
  const { icon: drawing, kind = "", ...others } = properties;
  return h("button", { type: "button", class: `button ${kind}`, onclick, ...others }, drawing && icon(drawing), label);
}

/** A name that may be broken behind its underscores. */
export function broken(name) {
  return name.split(/(?<=_)/).flatMap((part, at) => (at === 0 ? [part] : [document.createElement("wbr"), part]));
}

/** A word for a state, in its colour. */
export function badge(word, tone = "") {
  return h("span", { class: `badge ${tone}` }, word);
}

/** Something a person should know. */
export function note(tone, ...children) {
  return h("div", { class: `note ${tone}`, role: tone === "bad" ? "alert" : undefined }, ...children);
}

/** A label over its input, with a line that helps. */
export function field(label, input, hint) {
  input.id ||= `f${Math.random().toString(36).slice(2)}`;
  const help = hint && h("span", { class: "hint", id: `${input.id}-hint` }, hint);
  if (help) input.setAttribute("aria-describedby", help.id);
  return h("div", { class: "field" }, h("label", { htmlFor: input.id }, label), input, help);
}

/** Names and values. */
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/** The head of a page. */
export function pageHead(title, lead, actions = [], crumb) {
  return h("header", { class: "page-head" },
    h("div", {}, crumb, h("h1", { tabIndex: -1 }, title), lead && h("p", {}, lead)),
    actions.length > 0 && h("div", { class: "actions" }, actions));
}
