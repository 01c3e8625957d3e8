// Complete Models: the list of whole models.

import { get, part, send } from "./api.js";
import { h, badge, broken, button, icon, pageHead } from "./dom.js";
import { dialog, toast } from "./dialog.js";
import { checkDialog } from "./check.js";
import { deployDialog } from "./deploy.js";
import { listen } from "./events.js";
import { bytes, count, time } from "./figures.js";
import { list } from "./list.js";
import { progress } from "./jobs.js";
import { t } from "./texts.js";

const TONES = { whole: "good", live: "good", deploying: "busy" };

export const cardAddress = (name) => `#/complete/${part(name)}`;

export function completePage() {
  const models = list({
    path: "complete-models",
    label: t("complete"),
    events: ["complete-model", "live-model"],
    columns: [
      { label: t("name"), sort: "name", cell: (model) => [h("a", { href: cardAddress(model.name) }, broken(model.name)), h("small", {}, `${model.model.architecture} · ${count(model.model.parameters)} · ${model.model.dtype}`)] },
      { label: t("card.base"), sort: "base", class: "wide", cell: (model) => broken(model.base) },
      { label: t("card.customized"), class: "wide", cell: (model) => broken(model.customized) },
      { label: t("size"), sort: "bytes", class: "right nowrap numeric", cell: (model) => bytes(model.bytes) },
      { label: t("created"), sort: "created", class: "nowrap", cell: (model) => time(model.created) },
      { label: t("state"), sort: "state", class: "nowrap", cell: (model) => badge(t(`complete.state.${model.state}`), TONES[model.state]) },
    ],
    actions: (model) => [
      h("a", { class: "button small", href: cardAddress(model.name), "aria-label": `${t("card")}: ${model.name}` }, t("card")),
      button(t("deploy"), () => deployDialog(model), { kind: "small", "aria-label": `${t("deploy")}: ${model.name}` }),
      button(t("delete"), () => deleteDialog(model), { kind: "small danger", "aria-label": `${t("delete")}: ${model.name}` }),
    ],
    empty,
  });
  const saving = underWay();
  const element = h("div", {}, pageHead(t("complete"), t("complete.lead"), [button(t("check"), () => checkDialog(models.load)), h("a", { class: "button primary", href: "#/customized" }, icon("plus"), t("complete.save"))]), saving.element, models.element);
  return { title: t("complete"), element, leave: () => { models.leave(); saving.leave(); } };
}

/** Savings under way: models that will be in the list in a moment. */
function underWay() {
  const element = h("div", { class: "saving-now", "aria-live": "polite" });
  const load = async () => {
    const pages = await Promise.all(["running", "queued"].map((state) => get("jobs", { state, limit: 5 }).catch(() => ({ items: [] }))));
    const jobs = pages.flatMap((page) => page.items).filter((job) => job.kind === "saving");
    element.replaceChildren(...jobs.map((job) => h("section", { class: "panel panel-pad now", "aria-label": job.model },
      h("div", {}, h("b", { class: "break" }, broken(job.model)), h("div", { class: "small quiet" }, t("complete.saving"))), progress(job))));
  };
  load();
  return { element, leave: listen(["job"], load) };
}

function empty() {
  const steps = h("ol", { class: "steps" });
  const fill = async () => {
    const [base, customized] = await Promise.all(["base-models", "customized-models"].map((path) => get(path, { limit: 1 }).catch(() => ({ total: 0 }))));
    const step = (done, key) => h("li", { class: done ? "done" : "" }, h("span", {}, t(key)));
    steps.replaceChildren(step(base.total > 0, "complete.step.base"), step(customized.total > 0, "complete.step.customized"), step(false, "complete.step.save"));
    const next = base.total === 0 ? ["#/base", t("base.add")] : customized.total === 0 ? ["#/customized", t("customized.add")] : ["#/customized", t("save")];
    go.href = next[0];
    go.textContent = next[1];
  };
  const go = h("a", { class: "button primary", href: "#/base" }, t("base.add"));
  fill();
  return h("div", { class: "empty" }, icon("complete"), h("h2", {}, t("complete.empty")), h("p", {}, t("complete.empty.lead")), steps, go);
}

export function deleteDialog(model, then) {
  dialog({
    title: t("delete.title"),
    lead: model.name,
    body: [
      h("div", { class: "keep goes" }, h("h3", {}, t("delete.goes")), h("ul", { class: "keep goes" }, h("li", {}, t("delete.goes.model", { size: bytes(model.bytes) })), h("li", {}, t("delete.goes.made")))),
      h("div", { class: "keep" }, h("h3", {}, t("delete.stays")), h("ul", { class: "keep" }, h("li", {}, t("delete.stays.live")), h("li", {}, t("delete.stays.inputs")))),
    ],
    action: t("delete"),
    kind: "danger",
    submit: () => send("DELETE", `complete-models/${part(model.name)}`),
    then: () => { toast(t("deleted", { name: model.name })); then?.(); },
  });
}
