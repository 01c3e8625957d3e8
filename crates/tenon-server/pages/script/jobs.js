// Jobs: how far they are, what happened to them, stopping and trying again.

import { get, part, send } from "./api.js";
import { h, badge, broken, button, facts, icon, note, pageHead } from "./dom.js";
import { attempt, dialog, toast } from "./dialog.js";
import { listen } from "./events.js";
import { bytes, clock, percent, span, time } from "./figures.js";
import { list } from "./list.js";
import { quality } from "./make.js";
import { t } from "./texts.js";

const TONES = { queued: "wait", running: "busy", done: "good", failed: "bad", cancelled: "" };
const isOpen = (job) => job.state === "queued" || job.state === "running";

export function jobState(job) {
  return job.cancelling ? badge(t("job.stopping"), "wait") : badge(t(`job.${job.state}`), TONES[job.state]);
}

/** A bar, and what it stands for. */
export function progress(job) {
  if (job.state !== "running") return jobState(job);
  const bar = h("progress", { max: 1, "aria-label": `${t("jobs.progress")}: ${job.model}` });
  const known = job.total_bytes > 0;
  if (known) bar.value = job.share;
  const words = [job.step && t(`step.${job.step}`), known && percent(job.share), known && `${bytes(job.done_bytes)} / ${bytes(job.total_bytes)}`];
  return h("div", { class: "progress" }, bar, h("span", {}, words.filter(Boolean).join(" · ") || t("job.running")));
}

export function jobsPage() {
  const jobs = list({
    path: "jobs",
    label: t("jobs"),
    events: ["job"],
    filters: [{ name: "state", label: t("state.all"), choices: Object.keys(TONES).map((state) => [state, t(`job.${state}`)]) }],
    live: (before, now) => before.state === now.state && before.cancelling === now.cancelling,
    columns: [
      { label: t("jobs.model"), cell: (job) => [h("b", {}, broken(job.model)), job.reason && h("small", { class: "reason" }, job.reason)] },
      { label: t("jobs.kind"), class: "wide", cell: (job) => [t(`jobs.${job.kind}`), h("span", { class: "sub" }, job.environment ? [t("jobs.to", { environment: job.environment }), ` · ${job.quantization}`] : job.base ?? (job.kind === "gguf" && job.quantization))] },
      { label: t("created"), sort: "created", class: "nowrap", cell: (job) => [time(job.created), job.started && job.finished && h("span", { class: "sub" }, t("jobs.took", { span: span(job.started, job.finished) }))] },
      { label: t("state"), sort: "state", class: "state", cell: (job) => (job.cancelling ? jobState(job) : progress(job)) },
    ],
    actions: (job) => [
      button(t("jobs.log"), () => logDialog(job), { kind: "small", "aria-label": `${t("jobs.log")}: ${job.model}` }),
      isOpen(job) && !job.cancelling && button(t("jobs.stop"), () => stopDialog(job), { kind: "small danger", "aria-label": `${t("jobs.stop")}: ${job.model}` }),
      (job.state === "failed" || job.state === "cancelled") && button(t("jobs.retry"), () => retry(job), { kind: "small", "aria-label": `${t("jobs.retry")}: ${job.model}` }),
    ],
    empty: () => h("div", { class: "empty" }, icon("jobs"), h("h2", {}, t("jobs.empty")), h("p", {}, t("jobs.empty.lead")), h("a", { class: "button primary", href: "#/customized" }, t("customized"))),
  });
  return { title: t("jobs"), element: h("div", {}, pageHead(t("jobs"), t("jobs.lead")), jobs.element), leave: jobs.leave };
}

function retry(job) {
  return attempt(async () => {
    await send("POST", `jobs/${part(job.id)}/retry`);
    toast(t("jobs.retried"));
  });
}

function stopDialog(job) {
  dialog({ title: t("jobs.stop.title"), lead: job.model, body: h("p", {}, t("jobs.stop.lead")), action: t("jobs.stop.title").replace("?", ""), kind: "danger", submit: () => send("POST", `jobs/${part(job.id)}/cancel`) });
}

/** What came out of a verb that keeps no record of its own. */
function result({ kind, result: found }) {
  if (kind === "rebuild") {
    const others = [...found.changed_tensors, ...found.changed_files, ...found.changed_inputs];
    return found.same ? note("good", h("p", {}, t("jobs.same", { n: found.same_tensors }))) : note("bad", h("p", {}, t("jobs.differs")), h("p", { class: "small" }, others.slice(0, 20).join(", ")));
  }
  return h("div", { class: "stack" }, facts([
    [t("jobs.made"), [h("code", {}, found.path), " ", /\/results\/[^/]+$/.test(found.path) && h("a", { href: "#/results", onclick: (event) => event.currentTarget.closest("dialog").close() }, t("results.show"))]],
    [t("size"), found.bytes && bytes(found.bytes)],
    [t("method"), found.method],
    [t("quality"), found.quality && quality(found.quality)],
    ["SHA-256", found.sha256 && h("code", {}, found.sha256)],
  ]), found.notes?.length > 0 && note("wait", found.notes.map((line) => h("p", {}, line))));
}

export function logDialog(job) {
  const state = h("div", { class: "stack" });
  const lines = h("ol", { class: "log" });
  const load = async () => {
    const [now, log] = await Promise.all([get(`jobs/${part(job.id)}`), get(`jobs/${part(job.id)}/log`)]);
    state.replaceChildren(now.state === "failed" ? note("bad", h("p", {}, now.reason ?? "")) : h("div", {}, progress(now)), now.result ? result(now) : "");
    lines.replaceChildren(...log.lines.map((line) => h("li", {}, h("time", { dateTime: line.time }, clock(line.time)), h("b", {}, t(`log.${line.step}`)), h("span", { class: "break" }, line.step === "step" ? t(`step.${line.detail}`) : line.detail))));
  };
  const quiet = listen(["job"], (_, changed) => { if (!changed.id || changed.id === job.id) load().catch(() => {}); });
  const element = dialog({ title: t(`jobs.${job.kind}`), lead: job.model, body: [state, lines], wide: true });
  element.addEventListener("close", quiet);
  load().catch((error) => state.replaceChildren(note("bad", h("p", {}, error.message))));
}
