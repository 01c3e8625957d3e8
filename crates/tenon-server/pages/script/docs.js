// The description of the API, as the server's own document has it.

import { address } from "./api.js";
import { h } from "./dom.js";
import { choose, language } from "./texts.js";

const root = document.getElementById("docs");
const METHODS = ["get", "post", "put", "delete"];

function type(schema, depth = 0) {
  if (!schema) return "";
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return h("a", { href: `#schema-${name}` }, name);
  }
  const either = schema.oneOf ?? schema.anyOf ?? schema.allOf;
  if (either && depth < 4) return either.map((part, at) => [at > 0 && " | ", type(part, depth + 1)]);
  if (schema.enum) return schema.enum.map((word) => JSON.stringify(word)).join(" | ");
  const types = [schema.type ?? "any"].flat();
  if (types.includes("array")) return [type(schema.items, depth + 1), "[]"];
  return types.join(" | ") + (schema.format ? ` (${schema.format})` : "");
}

const table = (heads, rows) => h("table", {}, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell))))));

function bodies(content) {
  return Object.entries(content ?? {}).map(([kind, media]) => [h("code", {}, kind), " ", type(media.schema)]);
}

function operation(path, method, one) {
  const parameters = (one.parameters ?? []).map((parameter) => [h("code", {}, parameter.name), parameter.in, type(parameter.schema), [parameter.required && h("b", {}, "required. "), parameter.description]]);
  const answers = Object.entries(one.responses).map(([status, answer]) => [h("code", {}, status), answer.description, bodies(answer.content)]);
  return h("details", { class: "operation", id: one.operationId },
    h("summary", {}, h("span", { class: `method ${method}` }, method.toUpperCase()), h("code", { class: "break" }, path), h("span", { class: "quiet" }, one.summary)),
    h("div", {},
      one.description && h("p", {}, one.description),
      parameters.length > 0 && [h("h3", {}, "Parameters"), table(["Name", "In", "Type", ""], parameters)],
      one.requestBody && [h("h3", {}, "Body"), h("p", {}, bodies(one.requestBody.content))],
      h("h3", {}, "Answers"), table(["Status", "", "Body"], answers)));
}

function schema(name, one) {
  const fields = Object.entries(one.properties ?? one.allOf?.flatMap((part) => Object.entries(part.properties ?? {})).reduce((all, [k, v]) => ({ ...all, [k]: v }), {}) ?? {});
  const words = one.enum ?? one.oneOf?.flatMap((part) => part.enum ?? []);
  return h("details", { class: "operation", id: `schema-${name}` },
    h("summary", {}, h("b", {}, name), h("span", { class: "quiet" }, one.description?.split("\n")[0])),
    h("div", {},
      fields.length > 0 && table(["Field", "Type", ""], fields.map(([key, value]) => [[h("code", {}, key), (one.required ?? []).includes(key) ? "" : "?"], type(value), value.description])),
      words?.length > 0 && h("p", {}, words.map((word, at) => [at > 0 && ", ", h("code", {}, word)]))));
}

async function draw() {
  choose(language());
  document.documentElement.lang = "en";
  const response = await fetch(address("openapi.json"));
  const api = await response.json();
  const tags = new Map();
  for (const [path, item] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((method) => item[method])) {
      const [tag] = item[method].tags ?? ["Other"];
      tags.set(tag, [...(tags.get(tag) ?? []), operation(path, method, item[method])]);
    }
  }
  root.replaceChildren(
    h("header", { class: "stack" }, h("a", { class: "crumb", href: "index.html" }, "← Tenon"), h("h1", {}, `${api.info.title} ${api.info.version}: the API`),
      ...api.info.description.split("\n\n").map((text) => h("p", {}, text.replaceAll("`", ""))),
      h("p", {}, h("a", { href: address("openapi.json") }, `OpenAPI ${api.openapi}`), " · ", h("a", { href: address("metrics") }, "metrics"))),
    ...[...tags].map(([tag, operations]) => h("section", { class: "stack" }, h("h2", {}, tag), operations)),
    h("section", { class: "stack" }, h("h2", {}, "Schemas"), Object.entries(api.components.schemas).map(([name, one]) => schema(name, one))));
  follow();
}

/** Opens what the address points at. */
function follow() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target) {
    target.open = true;
    target.scrollIntoView();
  }
}

window.addEventListener("hashchange", follow);
draw().catch((error) => root.replaceChildren(h("p", { role: "alert" }, error.message)));
