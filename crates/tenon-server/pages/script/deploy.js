// Deploying a Complete Model: what to, where, under which name, and what that will send.

import { get, part, send } from "./api.js";
import { h, facts, field, note } from "./dom.js";
import { attempt, dialog, problem, toast } from "./dialog.js";
import { bytes } from "./figures.js";
import { t } from "./texts.js";

/** Bits that a weight takes, scales included. */
const BITS = { q8_0: 8.5, q4_K_M: 4.85, q4_K_S: 4.58 };
const QUANTIZATIONS = ["no_quantization", "q8_0", "q4_K_M", "q4_K_S"];

const size = (model, quantization) => bytes(BITS[quantization] ? (model.model.parameters * BITS[quantization]) / 8 : model.model.bytes);

export async function deployDialog(model) {
  const found = await attempt(() => Promise.all([get("environments", { limit: 1000, sort: "name" }), get(`base-models/${part(model.base)}/template`).catch(() => null)]));
  if (!found) return;
  const [environments, template] = found;
  const prompt = template && (await send("POST", "templates/preview", template).catch(() => null))?.prompt;
  const choices = QUANTIZATIONS.map((quantization) => h("label", { class: "choice" },
    h("input", { type: "radio", name: "quantization", value: quantization, checked: quantization === "q4_K_M", onchange: plan }),
    h("b", {}, quantization), h("span", {}, t(`deploy.${quantization}`, { size: size(model, quantization) }))));
  const environment = h("select", { required: true, onchange: plan }, environments.items.map((one) => h("option", { value: one.name }, `${one.name} (${one.kind}, ${one.url})`)));
  const there = h("input", { type: "text", maxLength: 200, autocomplete: "off", spellcheck: false, oninput: later });
  const replace = h("input", { type: "checkbox" });
  const planned = h("div", { class: "planned", "aria-live": "polite" });
  const none = environments.items.length === 0;
  const close = (event) => event.currentTarget.closest("dialog").close();

  const preview = template
    ? [h("p", { class: "small quiet" }, t("deploy.template.of", { file: template.file, base: model.base })), h("pre", { class: "source", tabIndex: 0, "aria-label": t("deploy.template") }, template.text),
      prompt && h("details", {}, h("summary", {}, t("deploy.template.preview")), h("pre", { class: "source", tabIndex: 0, "aria-label": t("deploy.template.preview") }, prompt))]
    : [note("wait", h("p", {}, t("deploy.template.none", { base: model.base })), h("p", {}, h("a", { href: `#/base/${part(model.base)}/template`, onclick: close }, t("deploy.template.attach", { base: model.base }))))];

  const body = () => ({
    model: model.name,
    environment: environment.value,
    quantization: choices.map((choice) => choice.firstChild).find((input) => input.checked).value,
    name: there.value.trim() || undefined,
    replace: replace.checked,
  });

  let typing;
  function later() {
    clearTimeout(typing);
    typing = setTimeout(plan, 300);
  }

  let asked = 0;
  async function plan() {
    if (none) return;
    asked += 1;
    const mine = asked;
    try {
      const { replace: _, ...request } = body();
      const found = await send("POST", "deployments/plan", request);
      if (mine === asked) planned.replaceChildren(h("div", { class: "stack" }, summary(found, request.quantization, model), found.notes.length > 0 && note("wait", found.notes.map((line) => h("p", {}, line)))));
    } catch (error) {
      if (mine === asked) planned.replaceChildren(problem(error));
    }
  }

  const element = dialog({
    title: t("deploy.title"),
    lead: model.name,
    wide: true,
    body: [
      h("fieldset", {}, h("legend", {}, t("deploy.quantization")), h("div", { class: "choices-grid" }, choices)),
      h("div", { class: "field-row" },
        none
          ? h("div", { class: "field" }, h("span", { class: "label" }, t("deploy.environment")), note("wait", h("p", {}, t("deploy.environment.none"), " ", h("a", { href: "#/environments", onclick: close }, t("deploy.environment.add")))))
          : field(t("deploy.environment"), environment),
        field(t("deploy.name"), there, t("deploy.name.hint"))),
      h("section", { class: "section" }, h("h3", {}, t("deploy.template")), preview),
      !none && h("section", { class: "section" }, h("h3", {}, t("deploy.sent")), planned, h("label", { class: "check small" }, replace, t("deploy.replace"))),
    ],
    action: t("deploy"),
    submit: () => send("POST", "deployments", body()),
    then: () => toast([t("deploy.queued"), " ", h("a", { href: "#/jobs" }, t("deploy.watch"))]),
  });
  element.action.disabled = none;
  plan();
}

function summary(plan, quantization, model) {
  const what = plan.sends === "gguf"
    ? t("deploy.sent.gguf", { quantization })
    : t("deploy.sent.safetensors", { size: bytes(plan.bytes ?? model.bytes) });
  return facts([
    [t("deploy.sent.to"), [h("b", {}, plan.environment), " ", h("span", { class: "tag" }, plan.kind), h("span", { class: "quiet break" }, ` ${plan.url}`)]],
    [t("deploy.sent.as"), h("code", {}, plan.model)],
    [t("deploy.sent.what"), what],
    [t("deploy.template"), plan.template ?? "–"],
  ]);
}
