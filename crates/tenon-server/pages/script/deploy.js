// Deploying a Complete Model, or a Customized Model (saved first, or as the adapter that it is): what to, where, under which name, and what that will send.

import { get, part, send } from "./api.js";
import { h, facts, field, note } from "./dom.js";
import { answering, attempt, dialog, toast } from "./dialog.js";
import { bytes } from "./figures.js";
import { QUANTIZATIONS, ggufBytes } from "./make.js";
import { t } from "./texts.js";

/** Bits that a weight takes, scales included. */
const BITS = { q8_0: 8.5, q4_K_M: 4.85, q4_K_S: 4.58 };

const size = (model, quantization) => bytes(BITS[quantization] ? (model.model.parameters * BITS[quantization]) / 8 : model.model.bytes);
/** What is said of a quantization: with a size where the model is whole. */
const about = (model, quantization) => (model.model ? t(`deploy.${quantization}`, { size: size(model, quantization) }) : t(`make.${quantization}`));

export async function deployDialog(model) {
  const found = await attempt(() => Promise.all([get("environments", { limit: 1000, sort: "name" }), get(`base-models/${part(model.base)}/template`).catch(() => null)]));
  if (!found) return;
  const [environments, template] = found;
  const prompt = template && (await send("POST", "templates/preview", template).catch(() => null))?.prompt;
  const none = environments.items.length === 0;
  const planned = h("div", { class: "planned", "aria-live": "polite" });
  const { now: plan, soon: later } = answering(planned, async () => {
    if (none) return [];
    const { replace: _, ...request } = body();
    const found = await send("POST", "deployments/plan", request);
    const gguf = found.sends === "gguf" && found.complete ? await ggufBytes(found.complete, request.quantization) : null;
    return [h("div", { class: "stack" }, summary(found, request.quantization, model, gguf), found.notes.length > 0 && note("wait", found.notes.map((line) => h("p", {}, line))))];
  });
  const choices = QUANTIZATIONS.map((quantization) => h("label", { class: "choice" },
    h("input", { type: "radio", name: "quantization", value: quantization, checked: quantization === "q4_K_M", onchange: plan }),
    h("b", {}, quantization), h("span", {}, about(model, quantization))));
  const environment = h("select", { required: true, onchange: plan }, environments.items.map((one) => h("option", { value: one.name }, `${one.name} (${one.kind}, ${one.url})`)));
  const there = h("input", { type: "text", maxLength: 200, autocomplete: "off", spellcheck: false, oninput: later });
  const replace = h("input", { type: "checkbox" });
  const onServer = h("input", { type: "checkbox", onchange: plan });
  const asAdapter = h("input", { type: "checkbox", onchange: () => { if (asAdapter.checked) choices[0].firstChild.checked = true; plan(); } });
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
    quantize_on: onServer.checked ? "server" : undefined,
    as_adapter: asAdapter.checked || undefined,
  });

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
      !none && h("section", { class: "section" }, h("h3", {}, t("deploy.sent")), planned),
      !none && h("section", { class: "section small" },
        h("label", { class: "check" }, replace, t("deploy.replace")),
        h("label", { class: "check" }, onServer, t("deploy.server")),
        !model.model && h("label", { class: "check" }, asAdapter, t("deploy.adapter"))),
    ],
    action: t("deploy"),
    submit: () => send("POST", "deployments", body()),
    then: () => toast([t("deploy.queued"), " ", h("a", { href: "#/jobs" }, t("deploy.watch"))]),
  });
  element.action.disabled = none;
  plan();
}

function summary(plan, quantization, model, gguf) {
  const what = plan.sends === "adapter" ? t("deploy.sent.adapter") : plan.sends === "gguf"
    ? [t(gguf?.kept ? "deploy.sent.kept" : "deploy.sent.gguf", { quantization }), gguf && h("b", {}, `, ${bytes(gguf.bytes)}`)]
    : t("deploy.sent.safetensors", { size: plan.bytes || model.bytes ? bytes(plan.bytes ?? model.bytes) : t("deploy.sent.later") });
  return facts([
    [t("deploy.sent.to"), [h("b", {}, plan.environment), " ", h("span", { class: "tag" }, plan.kind), h("span", { class: "quiet break" }, ` ${plan.url}`)]],
    [t("deploy.sent.as"), h("code", {}, plan.model)],
    [t("deploy.sent.what"), what],
    [t("deploy.template"), plan.template ?? "–"],
  ]);
}
