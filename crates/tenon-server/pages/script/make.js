// What is made beside a home: merges, blends, combinations, GGUF files. Planned as the form is filled in,
// and begun as jobs whose results are listed.

import { get, part, send } from "./api.js";
import { h, button, facts, field, note } from "./dom.js";
import { answering, attempt, dialog, toast } from "./dialog.js";
import { bytes, count } from "./figures.js";
import { language, t } from "./texts.js";

export const QUANTIZATIONS = ["no_quantization", "q8_0", "q4_K_M", "q4_K_S"];
const PATHS = { merge: "merges", blend: "blends", combine: "combinations", gguf: "ggufs" };
const WAYS = ["cat", "linear", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"];
const PRUNES = /ties|dare|prune/;
const EXAMPLE = `models:
  - model: first-model
    parameters: { weight: 0.5 }
  - model: second-model
    parameters: { weight: 0.5 }
merge_method: linear
dtype: bfloat16
`;

/** Opens the form of a verb, with what is chosen already. */
export async function makeDialog(kind, chosen = {}) {
  const all = { limit: 1000, sort: "name" };
  const found = await attempt(() => Promise.all(["base-models", "complete-models", "customized-models", "results"].map((path) => get(path, all))));
  if (!found) return;
  const [base, complete, customized, results] = found.map((page) => page.items);
  const named = (items) => items.map(({ name }) => [name, name]);
  const made = (what) => results.filter((one) => one.kind === what).map(({ name, path }) => [path, name]);
  const models = [[t("base"), named(base)], [t("complete"), named(complete)], [t("results"), made("model")]];
  const adapters = [[t("customized"), named(customized)], [t("results"), made("adapter")]];
  const missing = kind === "blend" ? null : kind !== "combine" && models.every(([, list]) => list.length === 0) ? "base" : kind !== "gguf" && adapters.every(([, list]) => list.length === 0) ? "customized" : null;
  if (missing) {
    dialog({ title: t(`make.${kind}`), lead: t(`make.${kind}.lead`), body: note("wait", h("p", {}, t(`make.none.${missing}`)), h("p", {}, h("a", { href: `#/${missing}`, onclick: (event) => event.currentTarget.closest("dialog").close() }, t(`${missing}.add`)))) });
    return;
  }
  const planned = h("section", { class: "section", "aria-live": "polite" });
  const plan = answering(planned, async () => {
    // Without a name there is nothing to say yet.
    if (!name.value.trim() || !name.checkValidity() || !form.isFilled()) return [];
    return summary(await send("POST", PATHS[kind], body(true)));
  });
  const later = plan.soon;
  const form = FORMS[kind]({ models, adapters, chosen, later });
  const name = h("input", { type: "text", required: true, maxLength: 190, autocomplete: "off", spellcheck: false, pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*", title: t("make.name.hint"), oninput: later });
  const out = () => (kind === "gguf" && !/\.gguf$/i.test(name.value.trim()) ? `${name.value.trim()}.gguf` : name.value.trim());
  const body = (dry) => ({ ...form.body(), out: out(), dry_run: dry || undefined });

  dialog({
    title: t(`make.${kind}`),
    lead: t(`make.${kind}.lead`),
    wide: true,
    body: [form.element, field(t("make.name"), name, t("make.name.hint")), planned],
    action: t("make.begin"),
    submit: () => send("POST", PATHS[kind], body(false)),
    then: (job) => toast([t("make.queued", { name: job.model }), " ", h("a", { href: "#/jobs" }, t("deploy.watch"))]),
  });
}

function summary(plan) {
  const needed = plan.bytes_needed && (plan.bytes_available ? t("make.of", { size: bytes(plan.bytes_needed), free: bytes(plan.bytes_available) }) : bytes(plan.bytes_needed));
  const pairs = [[t("method"), plan.method], [t("parameters"), plan.parameters && `${count(plan.parameters)} · ${t("make.tensors", { n: plan.tensors })}`], [t("size"), needed]];
  const known = pairs.some(([, value]) => value);
  return [h("h3", {}, t("make.planned")), known ? facts(pairs) : h("p", { class: "quiet small" }, t("make.fits")), plan.notes.length > 0 && note("wait", plan.notes.map((line) => h("p", {}, line)))].filter(Boolean);
}

/** A choice among groups of `[value, word]`. */
function choice(groups, value, onchange) {
  const filled = groups.filter(([, list]) => list.length > 0);
  const select = h("select", { required: true, onchange }, filled.map(([label, list]) => h("optgroup", { label }, list.map(([key, word]) => h("option", { value: key }, word)))));
  if (value) select.value = value;
  return select;
}

/** Adapters, each with its weight. */
function adapterRows(groups, chosen, least, later) {
  const rows = h("ol", { class: "rows" });
  const anything = groups.some(([, list]) => list.length > 0);
  const unused = () => {
    const used = [...rows.querySelectorAll("select")].map((select) => select.value);
    return groups.flatMap(([, list]) => list.map(([key]) => key)).find((key) => !used.includes(key));
  };
  const add = (value) => {
    const select = choice(groups, value ?? unused(), later);
    select.setAttribute("aria-label", t("make.adapter"));
    const weight = h("input", { type: "number", step: "any", value: "1", required: true, "aria-label": t("make.weight"), oninput: later });
    const row = h("li", {}, select, weight, button("×", () => { row.remove(); show(); later(); }, { kind: "plain close", "aria-label": t("make.adapter.remove") }));
    rows.append(row);
    show();
  };
  const heads = h("div", { class: "rows-head small quiet", "aria-hidden": "true" }, h("span", {}, t("make.adapter")), h("span", {}, t("make.weight")));
  const show = () => {
    heads.hidden = rows.childElementCount === 0;
    for (const remove of rows.querySelectorAll("button")) remove.hidden = rows.childElementCount <= least;
  };
  for (let n = 0; n < Math.max(least, chosen ? 1 : 0); n += 1) add(n === 0 ? chosen : undefined);
  show();
  const more = button(t("make.adapter.add"), () => { add(); later(); rows.lastElementChild.querySelector("select").focus(); }, { kind: "small", icon: "plus", disabled: !anything });
  return {
    element: h("fieldset", { class: "section" }, h("legend", {}, t("make.adapters")), heads, rows, h("div", {}, more)),
    list: () => [...rows.children].map((row) => ({ adapter: row.querySelector("select").value, weight: Number(row.querySelector("input").value) })),
  };
}

/** In which way several adapters become one; with `stack`, or none. */
function wayField(stack, later) {
  const select = h("select", { onchange: () => { density.hidden = !PRUNES.test(select.value); later(); } }, stack && h("option", { value: "" }, t("make.stack")), WAYS.map((way) => h("option", { value: way }, `${way}: ${t(`make.way.${way.replace(/_svd$/, "")}`)}${way.endsWith("_svd") ? t("make.way.cut") : ""}`)));
  const share = h("input", { type: "number", min: "0.01", max: "1", step: "any", value: "0.5", oninput: later });
  const density = field(t("make.density"), share, t("make.density.hint"));
  density.hidden = true;
  const combine = () => (select.value === "" ? undefined : { combination_type: select.value, density: PRUNES.test(select.value) ? Number(share.value) : undefined });
  return { element: h("div", { class: "field-row" }, field(t("make.way"), select), density), combine };
}

/** What few need to say of a GGUF file. */
function ggufOptions(later) {
  const text = { type: "text", spellcheck: false, autocomplete: "off", oninput: later };
  const rules = h("select", { onchange: later }, ["llama-quantize", "ollama"].map((whose) => h("option", { value: whose }, t(`make.rules.${whose}`))));
  const types = h("textarea", { rows: 2, spellcheck: false, class: "few", oninput: later });
  const imatrix = h("input", { ...text, class: "mono" });
  const pre = h("input", text);
  const lines = () => types.value.split("\n").map((line) => line.trim()).filter(Boolean);
  return {
    element: h("details", {}, h("summary", {}, t("make.more")), h("div", { class: "stack" },
      h("div", { class: "field-row" }, field(t("make.rules"), rules), field(t("make.pre"), pre, t("make.pre.hint"))),
      field(t("make.types"), types, t("make.types.hint")),
      field(t("make.imatrix"), imatrix, t("make.imatrix.hint")))),
    body: (quantized) => ({
      pre_tokenizer: pre.value.trim() || undefined,
      ...(quantized && { rules: rules.value, tensor_types: lines(), imatrix: imatrix.value.trim() || undefined }),
    }),
  };
}

const FORMS = {
  merge({ models, adapters, chosen, later }) {
    const model = choice(models, chosen.model, later);
    const rows = adapterRows(adapters, chosen.adapter, 1, later);
    const way = wayField(true, later);
    return {
      element: h("div", { class: "stack" }, field(t("card.base"), model), rows.element, way.element),
      isFilled: () => true,
      body: () => ({ base: model.value, adapters: rows.list(), combine: way.combine() }),
    };
  },
  combine({ adapters, chosen, later }) {
    const rows = adapterRows(adapters, chosen.adapter, 2, later);
    const way = wayField(false, later);
    return { element: h("div", { class: "stack" }, rows.element, way.element), isFilled: () => true, body: () => ({ adapters: rows.list(), combine: way.combine() }) };
  },
  gguf({ models, adapters, chosen, later }) {
    const model = choice(models, chosen.model, later);
    const rows = adapterRows(adapters, chosen.adapter, 0, later);
    const way = wayField(true, later);
    const several = new MutationObserver(() => { way.element.hidden = rows.list().length < 2; });
    several.observe(rows.element, { childList: true, subtree: true });
    way.element.hidden = true;
    const choices = QUANTIZATIONS.map((quantization) => h("label", { class: "choice" }, h("input", { type: "radio", name: "quantization", value: quantization, checked: quantization === (chosen.quantization ?? "q4_K_M"), onchange: later }), h("b", {}, quantization), h("span", {}, t(`make.${quantization}`))));
    const quantization = () => choices.map((label) => label.firstChild).find((input) => input.checked).value;
    const more = ggufOptions(later);
    return {
      element: h("div", { class: "stack" }, field(t("make.model"), model), h("fieldset", {}, h("legend", {}, t("deploy.quantization")), h("div", { class: "choices-grid" }, choices)), rows.element, way.element, more.element),
      isFilled: () => true,
      body: () => ({ model: model.value, adapters: rows.list(), combine: rows.list().length > 1 ? way.combine() : undefined, quantization: quantization(), ...more.body(quantization() !== "no_quantization") }),
    };
  },
  blend({ models, later }) {
    const text = h("textarea", { required: true, rows: 10, spellcheck: false, value: EXAMPLE, oninput: later });
    const names = models.slice(0, 2).flatMap(([, list]) => list.map(([, word]) => word));
    const known = names.length > 0 && h("p", { class: "small quiet break" }, t("make.blend.models"), " ", names.slice(0, 12).flatMap((name, at) => [at > 0 && ", ", h("code", {}, name)]));
    return { element: h("div", { class: "section" }, field(t("make.configuration"), text, t("make.configuration.hint")), known), isFilled: () => text.value.trim() !== "" && text.value !== EXAMPLE, body: () => ({ configuration: text.value }) };
  },
};

/** Quality figures of what was quantized, in a line. */
export function quality(found, brief = false) {
  if (!found) return null;
  const figure = (n, digits) => n.toLocaleString(language(), { maximumFractionDigits: digits });
  return [t("quality.error", { percent: figure(found.relative_error * 100, 2) }), found.signal_to_noise !== null && found.signal_to_noise !== undefined && t("quality.decibels", { n: figure(found.signal_to_noise, 1) }), !brief && t("quality.bits", { n: figure(found.bits_per_weight, 2) })].filter(Boolean).join(" · ");
}

/** Size of the GGUF file of a Complete Model: of the one that is kept, or of the one that would be made. */
export async function ggufBytes(model, quantization) {
  const plan = await send("POST", "ggufs", { model, quantization, dry_run: true }).catch(() => null);
  if (plan?.bytes_needed) return { bytes: plan.bytes_needed, kept: false };
  const kept = plan && (await get(`complete-models/${part(model)}/ggufs`).catch(() => null))?.items.find((one) => one.quantization === quantization);
  return kept ? { bytes: kept.bytes, kept: true } : null;
}
