// Results: what merges, blends, combinations and conversions made.

import { address, get, part, send } from "./api.js";
import { h, badge, broken, button, icon, pageHead } from "./dom.js";
import { attempt, dialog, toast } from "./dialog.js";
import { addBase } from "./base.js";
import { addAdapter } from "./customized.js";
import { bytes, time } from "./figures.js";
import { list } from "./list.js";
import { makeDialog } from "./make.js";
import { t } from "./texts.js";

const KINDS = ["model", "adapter", "gguf"];

export function resultsPage() {
  const results = list({
    path: "results",
    label: t("results"),
    events: ["job", "base-model", "customized-model"],
    filters: [{ name: "state", label: t("results.kind.all"), choices: KINDS.map((kind) => [kind, t(`results.kind.${kind}`)]) }],
    columns: [
      { label: t("name"), sort: "name", cell: (one) => [h("b", {}, broken(one.name)), h("small", {}, one.path)] },
      { label: t("results.kind"), sort: "state", class: "nowrap", cell: (one) => badge(t(`results.kind.${one.kind}`), one.kind === "other" ? "" : "good") },
      { label: t("size"), sort: "bytes", class: "right nowrap numeric", cell: (one) => bytes(one.bytes) },
      { label: t("created"), sort: "created", class: "nowrap", cell: (one) => time(one.created) },
    ],
    actions: (one) => [
      one.files === 1
        ? h("a", { class: "button small", href: address(`results/${part(one.name)}/files/${part(one.name)}`), download: one.name, "aria-label": `${t("results.download")}: ${one.name}` }, t("results.download"))
        : button(t("card.files"), () => filesDialog(one), { kind: "small", "aria-label": `${t("card.files")}: ${one.name}` }),
      one.kind === "model" && button(t("results.register"), () => addBase(one), { kind: "small", "aria-label": `${t("results.register")}: ${one.name}` }),
      one.kind === "adapter" && button(t("results.register"), () => addAdapter(one), { kind: "small", "aria-label": `${t("results.register")}: ${one.name}` }),
      button(t("delete"), () => remove(one, results), { kind: "small danger", "aria-label": `${t("delete")}: ${one.name}` }),
    ],
    empty: () => h("div", { class: "empty" }, icon("results"), h("h2", {}, t("results.empty")), h("p", {}, t("results.empty.lead")), h("div", { class: "buttons" }, makers())),
  });
  return { title: t("results"), element: h("div", {}, pageHead(t("results"), t("results.lead"), makers()), results.element), leave: results.leave };
}

function makers() {
  return ["merge", "combine", "blend", "gguf"].map((verb, at) => button(t(`make.${verb}`), () => makeDialog(verb), { kind: at === 0 ? "primary" : "" }));
}

async function filesDialog(one) {
  const found = await attempt(() => get(`results/${part(one.name)}`));
  if (!found) return;
  const file = ({ name, bytes: size }) => h("li", {}, h("a", { href: address(`results/${part(one.name)}/files/${part(name)}`), download: name.split("/").at(-1) }, name), h("span", {}, bytes(size)));
  dialog({ title: t("card.files"), lead: one.name, body: h("ul", { class: "files" }, found.items.map(file)) });
}

function remove(one, results) {
  dialog({
    title: t("results.delete.title"),
    lead: one.name,
    body: h("p", {}, t("results.delete.goes", { size: bytes(one.bytes) })),
    action: t("delete"),
    kind: "danger",
    submit: () => send("DELETE", `results/${part(one.name)}`),
    then: () => { toast(t("deleted", { name: one.name })); results.load(); },
  });
}
