// Customized Models: adapters with their Base Models, and saving them.

import { get, part, send, upload } from "./api.js";
import { h, broken, button, field, icon, pageHead } from "./dom.js";
import { attempt, dialog, toast } from "./dialog.js";
import { deployDialog } from "./deploy.js";
import { directoryField } from "./directory.js";
import { listen } from "./events.js";
import { bytes, time } from "./figures.js";
import { progress } from "./jobs.js";
import { list } from "./list.js";
import { cardAddress } from "./complete.js";
import { t } from "./texts.js";

export function customizedPage() {
  // The newest job of each model that was begun while this page is shown.
  const begun = new Map();
  const models = list({
    path: "customized-models",
    label: t("customized"),
    events: ["customized-model"],
    columns: [
      { label: t("name"), sort: "name", cell: (model) => [h("b", {}, broken(model.name)), h("small", {}, model.path)] },
      { label: t("card.base"), sort: "base", class: "wide", cell: (model) => broken(model.base) },
      { label: t("method"), class: "nowrap", cell: (model) => model.method },
      { label: t("created"), sort: "created", class: "nowrap", cell: (model) => time(model.created) },
      { label: t("state"), class: "saving", cell: (model) => state(begun.get(model.name)) },
    ],
    actions: (model) => [
      button(t("save"), () => save(model), { kind: "small primary", "aria-label": `${t("save")}: ${model.name}` }),
      button(t("deploy"), () => deployDialog(model), { kind: "small", "aria-label": `${t("deploy")}: ${model.name}` }),
      button(t("forget"), () => forget(model), { kind: "small danger", "aria-label": `${t("forget")}: ${model.name}` }),
    ],
    empty: () => h("div", { class: "empty" }, icon("customized"), h("h2", {}, t("customized.empty")), h("p", {}, t("customized.empty.lead")), button(t("customized.add"), () => addAdapter(), { kind: "primary" })),
  });

  function state(job) {
    if (!job) return h("span", { class: "quiet" }, "–");
    if (job.state !== "done") return progress(job);
    return h("a", { href: cardAddress(job.model), class: "saved" }, t("jobs.open"));
  }

  function save(model) {
    dialog({
      title: t("save.title"), lead: model.name, body: h("p", {}, t("save.lead")), action: t("save"),
      submit: () => send("POST", "savings", { customized: model.name }),
      then: (job) => {
        if (!begun.has(model.name) || begun.get(model.name).id !== job.id) begun.set(model.name, job);
        models.load();
      },
    });
  }

  const quiet = listen(["job"], (name, job) => {
    if (name !== "job" || job.kind !== "saving") return;
    const before = begun.get(job.customized);
    if (before && before.id !== job.id && before.created > job.created) return;
    begun.set(job.customized, job);
    const [row] = [...models.element.querySelectorAll("tbody tr")].filter((tr) => tr.querySelector("b")?.textContent === job.customized);
    row?.querySelector("td.saving > div")?.replaceChildren(state(job));
    if (job.state === "done" && before?.state !== "done") toast([t("save.done", { name: job.model }), " ", h("a", { href: cardAddress(job.model) }, t("card"))]);
    if (job.state === "failed" && before?.state !== "failed") toast([t("save.failed", { name: job.customized }), " ", h("a", { href: "#/jobs" }, t("save.why"))], "bad");
  });

  // What is under way already.
  Promise.all(["running", "queued"].map((state) => get("jobs", { state, limit: 100 }))).then((pages) => {
    for (const job of pages.flatMap((page) => page.items)) if (job.customized && !begun.has(job.customized)) begun.set(job.customized, job);
    models.load();
  }).catch(() => {});

  const element = h("div", {}, pageHead(t("customized"), t("customized.lead"), [button(t("customized.add"), () => addAdapter(), { kind: "primary", icon: "plus" })]), models.element);
  return { title: t("customized"), element, leave: () => { models.leave(); quiet(); } };
}

/** Adds an adapter; `chosen` is a result that is one. */
export async function addAdapter(chosen) {
  const bases = await attempt(() => get("base-models", { limit: 1000, sort: "name" }));
  if (!bases) return;
  if (bases.total === 0) {
    dialog({ title: t("customized.add"), lead: t("customized.empty.base"), body: h("a", { class: "button primary", href: "#/base", onclick: (event) => event.currentTarget.closest("dialog").close() }, t("base.add")) });
    return;
  }
  const base = h("select", { required: true }, bases.items.map((model) => h("option", { value: model.name }, model.name)));
  const train = h("input", { type: "text", maxLength: 200, autocomplete: "off" });
  const there = directoryField("adapter", chosen?.path);
  const delta = h("input", { type: "checkbox" });
  there.element.append(h("label", { class: "check small" }, delta, t("customized.delta")));
  const here = uploadField();
  const ways = { there, here };
  let way = "there";
  const panels = h("div", {}, there.element, here.element);
  const show = (chosen) => {
    way = chosen;
    for (const [name, one] of Object.entries(ways)) {
      one.element.hidden = name !== way;
      one.input.required = name === way;
    }
  };
  const radio = (name) => h("label", { class: "choice" }, h("input", { type: "radio", name: "way", value: name, checked: name === way, onchange: () => show(name) }), h("b", { class: "word" }, t(`customized.${name}`)), h("span", {}, t(`customized.${name}.lead`)));
  show("there");
  const named = () => train.value.trim() || undefined;
  dialog({
    title: t("customized.add"),
    lead: t("customized.add.lead"),
    body: [!chosen && h("fieldset", {}, h("legend", {}, t("customized.where")), h("div", { class: "choices-grid" }, radio("there"), radio("here"))), panels, field(t("card.base"), base), field(t("customized.train_name"), train, t("customized.train_name.hint"))],
    action: t("add"),
    submit: () => (way === "there"
      ? send("POST", "customized-models", { path: there.input.value.trim(), base: base.value, train_name: named(), delta: delta.checked || undefined })
      : here.send(base.value, named())),
    then: (model) => toast(t("customized.added", { name: model.name })),
  });
}

/** The files of an adapter on the machine that the browser runs on. */
function uploadField() {
  const input = h("input", { type: "file", multiple: true, accept: ".json,.safetensors" });
  const bar = h("progress", { max: 1, value: 0, "aria-label": t("customized.sending") });
  const words = h("span", {});
  const progress = h("div", { class: "progress", hidden: true, "aria-live": "polite" }, bar, words);
  const element = h("div", { class: "field" }, field(t("customized.files"), input, t("customized.files.hint")), progress);
  const name = (train) => {
    const stem = (train ?? "adapter").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+|\.+$/g, "") || "adapter";
    return `${stem.slice(0, 150)}-${Date.now().toString(36)}`;
  };
  const sendFiles = async (base, train) => {
    progress.hidden = false;
    try {
      return await upload("customized-models/upload", { name: name(train), base, train_name: train ?? "adapter" }, input.files, (done, total) => {
        bar.value = total > 0 ? done / total : 0;
        words.textContent = `${bytes(done)} / ${bytes(total)}`;
      });
    } finally {
      progress.hidden = true;
    }
  };
  return { element, input, send: sendFiles };
}

function forget(model) {
  dialog({ title: t("customized.forget.title"), lead: model.name, body: h("p", {}, t("customized.forget.stays")), action: t("forget"), kind: "danger", submit: () => send("DELETE", `customized-models/${part(model.name)}`) });
}
