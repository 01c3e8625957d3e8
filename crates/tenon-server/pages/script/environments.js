// Deployment Environments: the servers that serve models.

import { part, send } from "./api.js";
import { h, badge, broken, button, field, icon, pageHead } from "./dom.js";
import { attempt, dialog, toast } from "./dialog.js";
import { bytes, time } from "./figures.js";
import { list } from "./list.js";
import { t } from "./texts.js";

const KINDS = [["ollama", "Ollama"], ["llama-server", "llama.cpp server"], ["vllm", "vLLM"], ["openai", "OpenAI API"]];

export function environmentsPage() {
  const environments = list({
    path: "environments",
    label: t("environments"),
    events: ["environment"],
    columns: [
      { label: t("name"), sort: "name", cell: (one) => [h("b", {}, broken(one.name)), h("small", {}, one.url)] },
      { label: t("environments.kind"), class: "nowrap", cell: (one) => KINDS.find(([kind]) => kind === one.kind)?.[1] ?? one.kind },
      { label: t("environments.server"), class: "wide", cell: (one) => server(one.tested) },
      { label: t("created"), sort: "created", class: "nowrap", cell: (one) => time(one.created) },
      { label: t("environments.tested"), cell: (one) => tested(one.tested) },
    ],
    actions: (one) => [
      button(t("environments.test"), (event) => test(event.currentTarget, one), { kind: "small", "aria-label": `${t("environments.test")}: ${one.name}` }),
      button(t("forget"), () => forget(one), { kind: "small danger", "aria-label": `${t("forget")}: ${one.name}` }),
    ],
    empty: () => h("div", { class: "empty" }, icon("environments"), h("h2", {}, t("environments.empty")), h("p", {}, t("environments.empty.lead")), button(t("environments.add"), addDialog, { kind: "primary" })),
  });
  const element = h("div", {}, pageHead(t("environments"), t("environments.lead"), [button(t("environments.add"), addDialog, { kind: "primary", icon: "plus" })]), environments.element);
  return { title: t("environments"), element, leave: environments.leave };
}

function server(test) {
  if (!test?.answers) return h("span", { class: "quiet" }, "–");
  const more = [t("environments.models", { n: test.models }), test.free_bytes && bytes(test.free_bytes)].filter(Boolean);
  return [`${test.server} ${test.version ?? ""}`, h("span", { class: "sub" }, more.join(" · "))];
}

function tested(test) {
  if (!test) return badge(t("environments.untested"));
  const word = test.answers ? badge(t("environments.answers"), "good") : badge(t("environments.silent"), "bad");
  return [word, h("span", { class: "sub" }, time(test.at)), test.reason && h("span", { class: "sub" }, test.reason)];
}

async function test(pressed, one) {
  pressed.disabled = true;
  pressed.textContent = t("environments.testing");
  const found = await attempt(() => send("POST", `environments/${part(one.name)}/test`));
  pressed.disabled = false;
  pressed.textContent = t("environments.test");
  if (found?.tested?.answers) toast(t("environments.test.good", { name: one.name, server: `${found.tested.server} ${found.tested.version ?? ""}` }));
  else if (found) toast(found.tested?.reason ?? t("environments.silent"), "bad");
}

function addDialog() {
  const name = h("input", { type: "text", required: true, maxLength: 200, autocomplete: "off" });
  const kind = h("select", {}, KINDS.map(([value, word]) => h("option", { value }, word)));
  const url = h("input", { type: "url", required: true, maxLength: 2000, placeholder: "http://", autocomplete: "off" });
  const key = h("input", { type: "text", maxLength: 200, autocomplete: "off", spellcheck: false, placeholder: "TENON_KEY_…" });
  const timeout = h("input", { type: "number", min: "0.1", max: "86400", step: "any", placeholder: "30" });
  const options = h("textarea", { rows: 3, spellcheck: false, class: "few", placeholder: "uploads=4" });
  const chosen = () => Object.fromEntries(options.value.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => { const [option, ...value] = line.split("="); return [option.trim(), value.join("=").trim()]; }));
  dialog({
    title: t("environments.add"),
    lead: t("environments.add.lead"),
    body: [
      h("div", { class: "field-row" }, field(t("name"), name), field(t("environments.kind"), kind)),
      field(t("environments.url"), url, t("environments.url.hint")),
      field(t("environments.key"), key, t("environments.key.hint")),
      h("details", {}, h("summary", {}, t("environments.more")), h("div", { class: "stack" }, field(t("environments.timeout"), timeout, t("environments.timeout.hint")), field(t("environments.options"), options, t("environments.options.hint")))),
    ],
    action: t("add"),
    submit: () => send("POST", "environments", { name: name.value.trim(), kind: kind.value, url: url.value.trim(), key_variable: key.value.trim() || undefined, timeout_seconds: timeout.value ? Number(timeout.value) : undefined, options: chosen() }),
    then: (one) => toast(t("environments.added", { name: one.name })),
  });
}

function forget(one) {
  dialog({ title: t("environments.remove.title"), lead: one.name, body: h("p", {}, t("environments.remove.stays")), action: t("forget"), kind: "danger", submit: () => send("DELETE", `environments/${part(one.name)}`) });
}
