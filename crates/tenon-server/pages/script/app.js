// The frame around the pages, and which page is shown.

import { endSession, get, session, whenUnauthorized } from "./api.js";
import { h, button, icon } from "./dom.js";
import { attempt } from "./dialog.js";
import * as events from "./events.js";
import { signIn } from "./session.js";
import { choose, language, remember, remembered, t } from "./texts.js";
import { completePage } from "./complete.js";
import { cardPage } from "./card.js";
import { customizedPage } from "./customized.js";
import { basePage } from "./base.js";
import { livePage } from "./live.js";
import { environmentsPage } from "./environments.js";
import { jobsPage } from "./jobs.js";
import { resultsPage } from "./results.js";

const PAGES = {
  complete: completePage,
  customized: customizedPage,
  base: basePage,
  live: livePage,
  environments: environmentsPage,
  results: resultsPage,
  jobs: jobsPage,
};
const root = document.getElementById("app");
let leave = null;
let about = null;
let needsToken = false;

function frame() {
  const links = Object.keys(PAGES).map((name) => h("a", { href: `#/${name}`, "data-page": name }, icon(name), h("span", {}, t(name)), name === "jobs" && h("span", { class: "count", hidden: true })));
  const nav = h("nav", { class: "nav", id: "nav", "aria-label": t("navigation") }, links);
  const side = h("header", { class: "side" },
    h("a", { class: "brand", href: "#/complete" }, h("img", { src: "logo.svg", alt: "" }), "Tenon"),
    button(t("menu"), (event) => {
      const open = side.classList.toggle("open");
      event.currentTarget.setAttribute("aria-expanded", open);
    }, { icon: "menu", kind: "small menu-button", "aria-expanded": "false", "aria-controls": "nav" }),
    nav,
    h("div", { class: "side-foot" },
      choice(t("language"), [["en", "English"], ["de", "Deutsch"]], language(), (value) => { choose(value); draw(); }),
      choice(t("theme"), [["", t("theme.auto")], ["light", t("theme.light")], ["dark", t("theme.dark")]], remembered("theme") ?? "", (value) => { remember("theme", value || null); theme(); }),
      h("a", { href: "docs" }, t("api")),
      h("span", { class: "quiet" }, `Tenon ${about.version}`),
      needsToken && button(t("sign.out"), () => attempt(async () => { await endSession(); location.reload(); }), { kind: "small" })));
  const main = h("main", { class: "main", id: "main", tabIndex: -1 });
  nav.addEventListener("click", () => side.classList.remove("open"));
  const skip = h("a", { class: "skip", href: "#main", onclick: (event) => { event.preventDefault(); main.focus(); } }, t("skip"));
  root.replaceChildren(skip, h("div", { class: "frame" }, side, main));
  return { main, links };
}

function choice(label, choices, value, onchange) {
  const select = h("select", { "aria-label": label, onchange: () => onchange(select.value) }, choices.map(([key, word]) => h("option", { value: key }, word)));
  select.value = value;
  return select;
}

function theme() {
  const chosen = remembered("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
}

let parts = null;

function draw() {
  parts = frame();
  show(false);
  countJobs();
}

/** Shows the page that the address names. */
function show(moved = true) {
  const [name = "complete", ...rest] = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decode);
  leave?.();
  leave = null;
  for (const link of parts.links) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const make = name === "complete" && rest.length > 0 ? () => cardPage(rest[0]) : PAGES[name];
  const page = make ? make({ about, rest }) : { title: t("page.missing"), element: h("h1", { tabIndex: -1 }, t("page.missing")) };
  leave = page.leave ?? null;
  document.title = `${page.title} · Tenon`;
  parts.main.replaceChildren(h("div", { class: "page" }, page.element));
  window.scrollTo(0, 0);
  if (moved) parts.main.querySelector("h1")?.focus({ preventScroll: true });
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

async function countJobs() {
  const pages = await Promise.all(["queued", "running"].map((state) => get("jobs", { state, limit: 1 }).catch(() => ({ total: 0 }))));
  const open = pages[0].total + pages[1].total;
  for (const count of document.querySelectorAll(".nav .count")) {
    count.hidden = open === 0;
    count.textContent = String(open);
  }
}

async function begin() {
  choose(language());
  theme();
  let found = await session();
  needsToken = found.needs_token;
  if (!found.open) await signIn(root);
  about = await get("server");
  whenUnauthorized(() => location.reload());
  draw();
  events.begin();
  let waiting = null;
  events.listen(["job"], (_, job) => {
    if (job.state === "running" && document.querySelector(".nav .count:not([hidden])")) return;
    waiting ??= setTimeout(() => { waiting = null; countJobs(); }, 250);
  });
  window.addEventListener("hashchange", () => show());
}

begin().catch((error) => root.replaceChildren(h("main", { class: "login" }, h("p", { role: "alert" }, error.message))));
