// Base Models, and their Deployment Template Files.

import { get, part, send } from "./api.js";
import { h, badge, broken, button, field, icon, note, pageHead } from "./dom.js";
import { attempt, dialog, problem, toast } from "./dialog.js";
import { bytes, count, time } from "./figures.js";
import { directoryField } from "./directory.js";
import { list } from "./list.js";
import { t } from "./texts.js";

export function basePage({ rest }) {
  const models = list({
    path: "base-models",
    label: t("base"),
    events: ["base-model"],
    columns: [
      { label: t("name"), sort: "name", cell: (model) => [h("b", {}, broken(model.name)), h("small", {}, model.repository ?? model.path)] },
      { label: t("parameters"), class: "nowrap", cell: (model) => [count(model.model.parameters), h("span", { class: "sub" }, `${model.model.architecture} · ${model.model.dtype}`)] },
      { label: t("size"), sort: "bytes", class: "right nowrap numeric", cell: (model) => bytes(model.model.bytes) },
      { label: t("created"), sort: "created", class: "nowrap", cell: (model) => time(model.created) },
      { label: t("base.template"), class: "wide", cell: (model) => (model.template ? badge(model.template, "good") : h("span", { class: "quiet" }, t("base.template.none"))) },
    ],
    actions: (model) => [
      button(model.template ? t("template.change") : t("template.attach"), () => templateDialog(model.name), { kind: "small", "aria-label": `${model.template ? t("template.change") : t("template.attach")}: ${model.name}` }),
      button(t("forget"), () => forget(model), { kind: "small danger", "aria-label": `${t("forget")}: ${model.name}` }),
    ],
    empty: () => h("div", { class: "empty" }, icon("base"), h("h2", {}, t("base.empty")), h("p", {}, t("base.empty.lead")), button(t("base.add"), () => addBase(), { kind: "primary" })),
  });
  if (rest[1] === "template") templateDialog(rest[0]);
  const element = h("div", {}, pageHead(t("base"), t("base.lead"), [button(t("base.add"), () => addBase(), { kind: "primary", icon: "plus" })]), models.element);
  return { title: t("base"), element, leave: models.leave };
}

/** Registers a Base Model; `chosen` is a result that is a model. */
export function addBase(chosen) {
  const directory = directoryField("base", chosen?.path);
  const name = h("input", { type: "text", maxLength: 200, autocomplete: "off", value: chosen?.name ?? "" });
  dialog({
    title: t("base.add"),
    lead: t("base.add.lead"),
    body: [directory.element, field(t("name.optional"), name, t("base.name.hint"))],
    action: t("add"),
    submit: () => send("POST", "base-models", { path: directory.input.value.trim(), name: name.value.trim() || undefined }),
    then: (model) => toast(t("base.added", { name: model.name })),
  });
}

function forget(model) {
  dialog({ title: t("base.forget.title"), lead: model.name, body: h("p", {}, t("base.forget.stays")), action: t("forget"), kind: "danger", submit: () => send("DELETE", `base-models/${part(model.name)}`) });
}

async function templateDialog(base) {
  const path = `base-models/${part(base)}/template`;
  const known = await get(path).catch(() => null);
  const chosen = h("input", { type: "file", class: "hidden-text", accept: ".tmpl,.gotmpl,.template,.txt,.modelfile,text/plain", tabIndex: -1 });
  const name = h("input", { type: "text", required: true, maxLength: 255, autocomplete: "off", value: known?.file ?? "Modelfile" });
  const text = h("textarea", { required: true, rows: 14, spellcheck: false, value: known?.text ?? "" });
  chosen.setAttribute("aria-hidden", "true");
  chosen.addEventListener("change", async () => {
    const [file] = chosen.files;
    if (!file) return;
    name.value = file.name;
    text.value = await file.text();
    text.removeAttribute("aria-invalid");
  });
  text.addEventListener("input", () => text.removeAttribute("aria-invalid"));
  const shown = h("div", { class: "section", "aria-live": "polite" });
  const preview = button(t("template.preview"), async () => {
    shown.replaceChildren();
    try {
      const found = await send("POST", "templates/preview", { file: name.value.trim() || "Modelfile", text: text.value });
      text.removeAttribute("aria-invalid");
      shown.replaceChildren(h("h3", {}, t("deploy.template.preview")), found.prompt === null ? h("p", { class: "quiet" }, t("template.renderer")) : h("pre", { class: "source", tabIndex: 0, "aria-label": t("template.preview") }, found.prompt));
    } catch (error) {
      shown.replaceChildren(problem(error));
      text.setAttribute("aria-invalid", "true");
    }
  }, { kind: "small" });
  const suggest = button(t("template.suggest"), () => attempt(async () => {
    const found = await get(`${path}/suggestion`);
    name.value = "Modelfile";
    text.value = found.text;
    text.removeAttribute("aria-invalid");
    shown.replaceChildren(found.agrees ? note("good", h("p", {}, t("template.agrees"))) : note("wait", h("p", {}, t("template.differs"))), found.notes.length > 0 && note("", h("ul", {}, found.notes.map((line) => h("li", {}, line)))));
  }), { kind: "small" });
  const check = known && button(t("template.check"), () => attempt(async () => {
    const found = await get(`${path}/check`);
    const lines = [...found.warnings.map((place) => h("li", {}, h("b", {}, t("place", place)), " ", place.message)), ...(found.conversations ?? []).map((one) => h("li", {}, one.agrees ? "✓ " : "✕ ", one.conversation))];
    const verdict = found.conversations === null ? ["", "template.check.alone"] : found.agrees ? ["good", "template.check.agrees"] : ["wait", "template.check.differs"];
    shown.replaceChildren(note(verdict[0], h("p", {}, t(verdict[1], { file: found.file })), lines.length > 0 && h("ul", {}, lines)));
  }), { kind: "small" });
  const remove = known && button(t("template.remove"), async () => {
    const done = await attempt(async () => { await send("DELETE", path); return true; });
    if (!done) return;
    element.close();
    toast(t("template.removed", { base }));
  }, { kind: "danger small" });
  const element = dialog({
    title: t("template.title"),
    lead: t("template.lead", { base }),
    wide: true,
    body: [
      h("div", { class: "buttons" }, button(t("template.file"), () => chosen.click(), { kind: "small" }), chosen, suggest, preview, check, remove, h("span", { class: "quiet small hint-line" }, t("template.file.hint"))),
      field(t("template.file.name"), name),
      field(t("template.text"), text),
      shown,
    ],
    action: t("template.save"),
    submit: async () => {
      try {
        return await send("PUT", path, { file: name.value.trim(), text: text.value });
      } catch (error) {
        const [first] = error.problem?.errors ?? [];
        text.setAttribute("aria-invalid", "true");
        if (first) mark(text, first);
        throw error;
      }
    },
    then: (model) => toast(t("template.saved", { base, file: model.template })),
  });
}

/** Puts the cursor where the mistake is. */
function mark(text, place) {
  const lines = text.value.split("\n");
  const before = lines.slice(0, place.line - 1).reduce((sum, line) => sum + line.length + 1, 0);
  const at = Math.min(before + place.column - 1, text.value.length);
  const line = lines[place.line - 1] ?? "";
  text.focus();
  text.setSelectionRange(at, Math.min(at + Math.max(1, line.length - place.column + 1), text.value.length));
}
