// Customized Models: adapters with their Base Models, and saving them.

import { get, part, send } from "./api.js";
import { h, broken, button, field, icon, note, pageHead } from "./dom.js";
import { attempt, dialog, toast } from "./dialog.js";
import { listen } from "./events.js";
import { time } from "./figures.js";
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
      button(t("forget"), () => forget(model), { kind: "small danger", "aria-label": `${t("forget")}: ${model.name}` }),
    ],
    empty: () => h("div", { class: "empty" }, icon("customized"), h("h2", {}, t("customized.empty")), h("p", {}, t("customized.empty.lead")), button(t("customized.add"), addDialog, { kind: "primary" })),
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

  const element = h("div", {}, pageHead(t("customized"), t("customized.lead"), [button(t("customized.add"), addDialog, { kind: "primary", icon: "plus" })]), models.element);
  return { title: t("customized"), element, leave: () => { models.leave(); quiet(); } };
}

/** A directory under the allowed paths: chosen from those that were found, or written. */
export function directoryField(holds) {
  const options = h("datalist", { id: `found-${holds}` });
  const input = h("input", { type: "text", required: true, spellcheck: false, autocomplete: "off", class: "mono", placeholder: "/…" });
  input.setAttribute("list", options.id);
  const hint = h("span", {});
  const element = h("div", { class: "stack" }, field(t("path"), input, hint), options);
  get("directories", { holds }).then((found) => {
    options.replaceChildren(...found.found.map((value) => h("option", { value })));
    if (found.allow_paths.length === 0) element.prepend(note("wait", h("p", {}, t("path.none"))));
    else hint.textContent = t("path.hint", { paths: found.allow_paths.join(", ") });
    if (found.found.length > 0 && !input.value) input.value = found.found[0];
  }).catch(() => {});
  return { element, input };
}

async function addDialog() {
  const bases = await attempt(() => get("base-models", { limit: 1000, sort: "name" }));
  if (!bases) return;
  if (bases.total === 0) {
    dialog({ title: t("customized.add"), lead: t("customized.empty.base"), body: h("a", { class: "button primary", href: "#/base", onclick: (event) => event.currentTarget.closest("dialog").close() }, t("base.add")) });
    return;
  }
  const directory = directoryField("adapter");
  const base = h("select", { required: true }, bases.items.map((model) => h("option", { value: model.name }, model.name)));
  const train = h("input", { type: "text", maxLength: 200, autocomplete: "off" });
  dialog({
    title: t("customized.add"),
    lead: t("customized.add.lead"),
    body: [directory.element, field(t("card.base"), base), field(t("customized.train_name"), train, t("customized.train_name.hint"))],
    action: t("add"),
    submit: () => send("POST", "customized-models", { path: directory.input.value.trim(), base: base.value, train_name: train.value.trim() || undefined }),
    then: (model) => toast(t("customized.added", { name: model.name })),
  });
}

function forget(model) {
  dialog({ title: t("customized.forget.title"), lead: model.name, body: h("p", {}, t("customized.forget.stays")), action: t("forget"), kind: "danger", submit: () => send("DELETE", `customized-models/${part(model.name)}`) });
}
