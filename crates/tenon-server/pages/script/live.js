// Live Models: what was deployed, and whether it still answers.

import { part, send } from "./api.js";
import { h, badge, broken, button, icon, pageHead } from "./dom.js";
import { attempt, dialog, toast } from "./dialog.js";
import { bytes, time } from "./figures.js";
import { list } from "./list.js";
import { cardAddress } from "./complete.js";
import { quality } from "./make.js";
import { t } from "./texts.js";

const TONES = { live: "good", silent: "bad", missing: "bad", changed: "wait", unreachable: "wait" };
const address = (live) => `live-models/${part(live.environment)}/${part(live.model)}`;

export function livePage() {
  const models = list({
    path: "live-models",
    label: t("live"),
    events: ["live-model", "complete-model"],
    columns: [
      { label: t("name"), sort: "name", cell: (live) => [h("b", {}, broken(live.model)), h("small", {}, `${live.environment} · ${live.kind} · ${live.url}`)] },
      { label: t("live.made"), class: "wide", cell: (live) => [live.complete_exists ? h("a", { href: cardAddress(live.complete) }, broken(live.complete)) : [h("span", {}, broken(live.complete)), h("span", { class: "sub" }, t("live.gone"))]] },
      { label: t("live.quantization"), class: "code", cell: (live) => [live.quantization, live.quality && h("span", { class: "sub" }, quality(live.quality, true))] },
      { label: t("size"), sort: "bytes", class: "right nowrap numeric", cell: (live) => bytes(live.bytes) },
      { label: t("live.since"), sort: "created", class: "nowrap", cell: (live) => time(live.created) },
      { label: t("state"), sort: "state", cell: (live) => [badge(t(`live.state.${live.state}`), TONES[live.state]), h("span", { class: "sub" }, t("live.checked"), " ", time(live.checked)), live.note && h("span", { class: "sub" }, live.note)] },
    ],
    actions: (live) => [
      button(t("live.check"), (event) => check(event.currentTarget, live), { kind: "small", "aria-label": `${t("live.check")}: ${live.name}` }),
      button(t("live.remove"), () => removeDialog(live), { kind: "small danger", "aria-label": `${t("live.remove")}: ${live.name}` }),
    ],
    empty: () => h("div", { class: "empty" }, icon("live"), h("h2", {}, t("live.empty")), h("p", {}, t("live.empty.lead")), h("a", { class: "button primary", href: "#/complete" }, t("complete"))),
  });
  return { title: t("live"), element: h("div", {}, pageHead(t("live"), t("live.lead")), models.element), leave: models.leave };
}

async function check(pressed, live) {
  pressed.disabled = true;
  await attempt(() => send("POST", `${address(live)}/check`));
  pressed.disabled = false;
}

function removeDialog(live) {
  const there = h("input", { type: "checkbox" });
  dialog({
    title: t("live.remove.title"),
    lead: live.name,
    body: [h("label", { class: "check" }, there, t("live.remove.there", { environment: live.environment })), h("p", { class: "quiet small" }, t("live.remove.stays"))],
    action: t("live.remove"),
    kind: "danger",
    submit: () => send("DELETE", address(live), undefined, { from_environment: there.checked }),
    then: () => toast(t("live.removed", { name: live.name })),
  });
}
