// What the catalogue says of the Complete Models, compared with what lies on the disk.

import { send } from "./api.js";
import { h, note } from "./dom.js";
import { attempt, dialog, toast } from "./dialog.js";
import { t } from "./texts.js";

/** What of it a repair mends: the catalogue follows the manifests. */
const MENDED = ["unlisted", "missing", "differ"];

export async function checkDialog(then) {
  const found = await attempt(() => send("POST", "registry/check", {}));
  if (!found) return;
  const entries = { ...found, foreign: found.foreign.map(({ name, reason }) => `${name}: ${reason}`) };
  const findings = [...MENDED, "foreign", "inputs_gone"].filter((kind) => entries[kind].length > 0);
  const canRepair = findings.some((kind) => MENDED.includes(kind));
  const body = [
    note(findings.length > 0 ? "wait" : "good", h("p", {}, t("check.agree", { n: found.agree }), findings.length > 0 ? "" : ` ${t("check.nothing")}`)),
    findings.map((kind) => h("section", { class: "section" }, h("h3", {}, t(`check.${kind}`)), h("p", { class: "small quiet" }, t(`check.${kind}.hint`)), h("ul", { class: "break" }, entries[kind].map((entry) => h("li", {}, entry))))),
  ];
  dialog({
    title: t("check.title"),
    lead: t("check.lead"),
    body,
    action: canRepair ? t("check.repair") : undefined,
    submit: canRepair ? () => send("POST", "registry/check", { repair: true }) : undefined,
    then: () => { toast(t("check.repaired")); then(); },
  });
}
