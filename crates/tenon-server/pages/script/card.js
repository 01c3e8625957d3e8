// The Model Card of one Complete Model.

import { address, get, part, send } from "./api.js";
import { h, badge, broken, button, facts, note, pageHead } from "./dom.js";
import { attempt, problem, toast } from "./dialog.js";
import { deleteDialog } from "./complete.js";
import { deployDialog } from "./deploy.js";
import { bytes, count, time } from "./figures.js";
import { makeDialog, quality } from "./make.js";
import { t } from "./texts.js";

const HTML = ["H1", "H2", "H3", "H4", "P", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "CODE", "PRE", "STRONG", "EM", "A", "FIGURE", "UL", "OL", "LI"];
const DRAWING = ["svg", "g", "title", "text", "line", "rect", "path", "polyline", "circle"];
const ATTRIBUTES = ["class", "viewBox", "width", "height", "role", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "d", "points", "fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "text-anchor", "font-size", "font-family", "transform"];

/**
 * What may be on our pages of a card. The server escapes what strangers wrote; this is the second
 * lock: elements and attributes that are not named here do not get in.
 */
function clean(node) {
  if (node.nodeType === Node.TEXT_NODE) return document.createTextNode(node.data);
  if (node.nodeType !== Node.ELEMENT_NODE) return null;
  const isDrawing = node.namespaceURI === "http://www.w3.org/2000/svg";
  if (!(isDrawing ? DRAWING : HTML).includes(node.nodeName)) return null;
  const copy = document.createElementNS(node.namespaceURI, node.localName);
  for (const { name, value } of node.attributes) {
    if (isDrawing ? ATTRIBUTES.includes(name) : name === "class" && value === "r") copy.setAttribute(name, value);
    if (node.nodeName === "A" && name === "href" && /^https?:\/\//.test(value)) {
      copy.setAttribute("href", value);
      copy.setAttribute("rel", "noopener noreferrer");
    }
  }
  copy.append(...[...node.childNodes].map(clean).filter(Boolean));
  if (copy.nodeName === "PRE") copy.tabIndex = 0;
  if (copy.nodeName !== "TABLE") return copy;
  // A head without words is none.
  for (const row of [...copy.rows]) if (!row.textContent.trim()) row.remove();
  for (const th of copy.querySelectorAll("th")) {
    if (th.textContent.trim()) th.scope = "col";
    else th.replaceWith(h("td"));
  }
  return h("div", { class: "card-table", tabIndex: 0, role: "group", "aria-label": copy.rows[0]?.innerText || t("card") }, copy);
}

function fragment(html) {
  const parsed = new DOMParser().parseFromString(html, "text/html");
  const [first] = parsed.body.children;
  // The page has the name already.
  if (first?.nodeName === "H1") first.remove();
  return [...parsed.body.childNodes].map(clean).filter(Boolean);
}

export function cardPage(name) {
  const element = h("div", {}, pageHead(name, t("loading"), [], crumb()));
  const load = async () => {
    const path = `complete-models/${part(name)}`;
    const [model, card, files, ggufs] = await Promise.all([get(path), get(`${path}/card`, { format: "fragment" }, "text"), get(`${path}/files`), get(`${path}/ggufs`)]);
    element.replaceChildren(...content(model, card, files.items, ggufs.items));
  };
  load().catch((error) => element.replaceChildren(pageHead(name, undefined, [], crumb()), problem(error)));
  return { title: name, element };
}

const crumb = () => h("a", { class: "crumb", href: "#/complete" }, `← ${t("card.back")}`);

function content(model, card, files, ggufs) {
  const path = `complete-models/${part(model.name)}`;
  const tile = (label, value, more) => h("div", { class: "panel tile" }, h("dt", {}, label), h("dd", {}, value, more && h("small", {}, more)));
  const actions = [
    button(t("deploy"), () => deployDialog(model), { kind: "primary" }),
    button(t("delete"), () => deleteDialog(model, () => (location.hash = "#/complete")), { kind: "danger" }),
  ];
  const download = (format, word, file) => h("a", { class: "button small", href: address(`${path}/card`, { format }), download: file }, word);
  const verified = h("div", { "aria-live": "polite" });
  const lead = h("span", {}, badge(t(`complete.state.${model.state}`), "good"), " ", time(model.created));
  return [
    pageHead(broken(model.name), lead, actions, crumb()),
    h("dl", { class: "tiles" },
      tile(t("parameters"), count(model.model.parameters), model.model.architecture),
      tile(t("size"), bytes(model.bytes), t("card.files") + `: ${files.length}`),
      tile(t("card.dtype"), model.model.dtype),
      tile(t("card.base"), model.base)),
    h("div", { class: "card-grid" },
      h("article", { class: "panel card", "aria-label": t("card") }, fragment(card)),
      h("aside", { class: "card-side" },
        h("section", { class: "panel panel-pad" }, h("h2", {}, t("card.files")),
          h("ul", { class: "files" }, files.map((file) => h("li", {}, h("a", { href: address(`${path}/files/${part(file.name)}`), download: file.name, title: `SHA-256 ${file.sha256}` }, file.name), h("span", {}, bytes(file.bytes))))),
          h("div", { class: "downloads" }, button(t("card.verify"), (event) => verify(event.currentTarget, path, verified), { kind: "small", title: t("card.verify.lead") }), button(t("card.rebuild"), () => rebuild(path), { kind: "small", title: t("card.rebuild.lead") })), verified),
        h("section", { class: "panel panel-pad" }, h("h2", {}, t("card.ggufs")),
          ggufs.length === 0 ? noGguf() : h("ul", { class: "files" }, ggufs.map((one) => h("li", {}, h("a", { href: address(`${path}/ggufs/${part(one.file)}`), download: `${model.name}-${one.quantization}.gguf`, title: `SHA-256 ${one.sha256}` }, one.quantization), h("span", {}, bytes(one.bytes), " ", button("×", (event) => removeGguf(event.currentTarget, path, one), { kind: "plain close small", "aria-label": `${t("card.gguf.remove")}: ${one.quantization}`, title: t("card.gguf.remove.hint") })), one.quality && h("small", { class: "quiet" }, quality(one.quality))))),
          h("div", { class: "downloads" }, button(t("make.gguf"), () => makeDialog("gguf", { model: model.name }), { kind: "small" }))),
        h("section", { class: "panel panel-pad" }, h("h2", {}, t("card.as")),
          h("div", { class: "downloads" }, download("md", "Markdown", "README.md"), download("json", "JSON", "card.json"), download("html", "HTML", `${model.name}.html`))),
        h("section", { class: "panel panel-pad stack" }, h("h2", {}, t("card.made")),
          facts([[t("card.customized"), model.customized], [t("card.saving"), h("code", {}, model.saving)], [t("path"), h("code", {}, model.path)]])))),
  ];
}

const noGguf = () => h("p", { class: "small quiet" }, t("card.ggufs.none"));

/** A file that can be made again goes without a question. */
async function removeGguf(pressed, path, one) {
  const row = pressed.closest("li");
  const done = await attempt(() => send("DELETE", `${path}/ggufs/${part(one.file)}`).then(() => true));
  if (!done) return;
  toast(t("card.gguf.removed", { size: bytes(one.bytes) }));
  const others = row.parentElement.childElementCount - 1;
  (others > 0 ? row : row.parentElement).replaceWith(...(others > 0 ? [] : [noGguf()]));
}

function rebuild(path) {
  return attempt(async () => {
    await send("POST", `${path}/rebuild`);
    toast([t("card.rebuilding"), " ", h("a", { href: "#/jobs" }, t("deploy.watch"))]);
  });
}

async function verify(pressed, path, into) {
  pressed.disabled = true;
  into.replaceChildren(h("p", { class: "small quiet" }, t("card.verifying")));
  try {
    const found = await send("POST", `${path}/verify`);
    const wrong = [...found.changed, ...found.missing, ...found.extra];
    into.replaceChildren(found.intact ? note("good", h("span", {}, t("card.intact", { n: found.files }))) : note("bad", h("span", {}, t("card.changed", { files: wrong.join(", ") }))));
  } catch (error) {
    into.replaceChildren();
    toast(error.message, "bad");
  } finally {
    pressed.disabled = false;
  }
}
