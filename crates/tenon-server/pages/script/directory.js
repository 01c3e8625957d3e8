// A directory on the server, under the paths that it was started with: chosen from what was found there,
// or written; and what it is, as soon as it is chosen.

import { get, send } from "./api.js";
import { h, facts, field, note } from "./dom.js";
import { answering } from "./dialog.js";
import { bytes, count } from "./figures.js";
import { t } from "./texts.js";

/** What is looked for holds a `base` or an `adapter`; `chosen` is its path where that is known. */
export function directoryField(holds, chosen) {
  const input = h("input", { type: "text", required: true, spellcheck: false, autocomplete: "off", class: "mono", placeholder: "/…", value: chosen ?? "", oninput: () => { filter(); about.replaceChildren(); looking.soon(); } });
  const found = h("ul", { class: "found", hidden: true });
  const about = h("div", { "aria-live": "polite" });
  const label = field(t("path"), input);
  const element = h("div", { class: "field" }, label, found, about);
  const looking = answering(about, async () => {
    const path = input.value.trim();
    return path.startsWith("/") ? what(await send("POST", "inspect", { path })) : [];
    // What is wrong with it is said when it is sent.
  }, { pause: 400, failed: () => "" });
  let all = [];
  let roots = [];

  function filter() {
    const wanted = input.value.trim().toLowerCase();
    const exact = all.includes(input.value.trim());
    const shown = exact ? all : all.filter((path) => path.toLowerCase().includes(wanted));
    found.hidden = shown.length === 0;
    found.replaceChildren(...shown.map((path) => h("li", {}, h("button", { type: "button", "aria-pressed": String(path === input.value.trim()), onclick: () => { input.value = path; filter(); looking.now(); input.focus(); } }, ...shorter(path)))));
    found.querySelector('[aria-pressed="true"]')?.scrollIntoView({ block: "nearest" });
  }

  /** The last part first in weight: what lies before it is the same for many. */
  function shorter(path) {
    const at = path.lastIndexOf("/") + 1;
    const root = roots.filter((one) => path.startsWith(`${one}/`)).sort((a, b) => b.length - a.length)[0];
    const before = root ? path.slice(root.lastIndexOf("/") + 1, at) : path.slice(0, at);
    return [h("span", { class: "quiet" }, before), h("b", {}, path.slice(at))];
  }

  get("directories", { holds }).then((page) => {
    ({ found: all, allow_paths: roots } = page);
    const hint = h("span", { class: "hint", id: `${input.id}-hint` }, roots.length > 0 ? t("path.hint", { paths: roots.join(", ") }) : t("path.none"));
    input.setAttribute("aria-describedby", hint.id);
    label.append(hint);
    filter();
  }).catch(() => {});
  if (chosen) looking.now();
  return { element, input };
}

function what(it) {
  if (it.mergeable === false && it.why_not) return [note("wait", h("p", {}, it.why_not))];
  const trained = it.training?.find((fact) => /epoch|step/i.test(fact.name));
  const pairs = [
    [t("inspect.is"), t(`inspect.${it.kind}`) === `inspect.${it.kind}` ? it.kind : t(`inspect.${it.kind}`)],
    [t("method"), it.method && [it.method, it.rank && ` · ${t("inspect.rank", { n: it.rank })}`]],
    [t("inspect.base"), it.base],
    [t("inspect.architecture"), it.architecture],
    [t("parameters"), it.parameters > 0 && `${count(it.parameters)} · ${it.dtype ?? ""}`],
    [t("size"), it.bytes > 0 && bytes(it.bytes)],
    [trained?.name, trained && String(trained.value)],
  ];
  return [h("div", { class: "about" }, facts(pairs)), it.notes?.length > 0 && note("", it.notes.map((line) => h("p", {}, line)))].filter(Boolean);
}
