// The description of the API, as the server's own document has it.

import { address, raw, session } from "./api.js";
import { h, field, note } from "./dom.js";
import { choose, language } from "./texts.js";

const root = document.getElementById("docs");
let schemas = {};
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
      h("h3", {}, "Answers"), table(["Status", "", "Body"], answers),
      tryIt(path, method, one)));
}

/** An example of what a schema asks for: what is required, and nothing else. */
function example(schema, depth = 0) {
  if (!schema || depth > 6) return null;
  if (schema.$ref) return example(schemas[schema.$ref.split("/").pop()], depth + 1);
  const [either] = schema.oneOf ?? schema.anyOf ?? [];
  if (either) return example(either, depth + 1);
  if (schema.enum) return schema.enum[0];
  if (schema.default !== undefined) return schema.default;
  const [type] = [schema.type ?? "object"].flat();
  if (type === "object") return Object.fromEntries((schema.required ?? []).map((name) => [name, example(schema.properties?.[name], depth + 1)]));
  if (type === "array") return [example(schema.items, depth + 1)];
  return { string: "", boolean: false, integer: schema.minimum ?? 0, number: schema.minimum ?? 0 }[type] ?? null;
}

/** A form that sends the request to this server, and its answer. Events never end, so they are only described. */
function tryIt(path, method, one) {
  if (one.operationId === "events") return null;
  const inputs = (one.parameters ?? []).map((parameter) => {
    const words = parameter.schema?.enum ?? schemas[parameter.schema?.$ref?.split("/").pop()]?.enum;
    const input = words
      ? h("select", { required: parameter.required }, !parameter.required && h("option", { value: "" }, "–"), words.map((word) => h("option", { value: word }, word)))
      : h("input", { type: "text", required: parameter.required, autocomplete: "off", spellcheck: false });
    return { parameter, input };
  });
  const [[kind, media] = []] = Object.entries(one.requestBody?.content ?? {});
  const body = media && h("textarea", { rows: 6, spellcheck: false, value: JSON.stringify(example(media.schema), null, 2) });
  const answer = h("div", { class: "section", "aria-live": "polite" });
  const submit = async (event) => {
    event.preventDefault();
    const filled = (where) => inputs.filter(({ parameter, input }) => parameter.in === where && input.value !== "");
    const target = filled("path").reduce((text, { parameter, input }) => text.replace(`{${parameter.name}}`, encodeURIComponent(input.value)), path);
    const url = address(target.replace(/^\/api\/v1\//, ""), Object.fromEntries(filled("query").map(({ parameter, input }) => [parameter.name, input.value])));
    const headers = Object.fromEntries(filled("header").map(({ parameter, input }) => [parameter.name, input.value]));
    if (body) headers["Content-Type"] = kind;
    const clock = performance.now();
    try {
      const response = await raw(url, { method: method.toUpperCase(), headers, body: body?.value });
      await show(response, Math.round(performance.now() - clock));
    } catch (error) {
      answer.replaceChildren(note("bad", h("p", {}, error.message)));
    }
  };
  const show = async (response, ms) => {
    const type = response.headers.get("content-type") ?? "";
    const head = h("p", {}, h("b", {}, `${response.status} ${response.statusText}`), h("span", { class: "quiet" }, ` · ${ms} ms${type && ` · ${type}`}`));
    if (/octet-stream/.test(type)) {
      await response.body?.cancel();
      return answer.replaceChildren(head, h("p", { class: "small" }, "A file: ", h("a", { href: response.url, download: "" }, "download it")));
    }
    const text = await response.text();
    const shown = /json/.test(type) && text ? JSON.stringify(JSON.parse(text), null, 2) : text;
    const cut = shown.length > 100_000 ? `${shown.slice(0, 100_000)}\n… ${shown.length} characters` : shown;
    return answer.replaceChildren(head, cut ? h("pre", { class: "source answer", tabIndex: 0, "aria-label": "Answer" }, cut) : "");
  };
  return h("form", { class: "try", onsubmit: submit },
    h("h3", {}, "Try it"),
    method !== "get" && h("p", { class: "small quiet" }, "This is sent to this server and really done."),
    inputs.length > 0 && h("div", { class: "field-row" }, inputs.map(({ parameter, input }) => field(parameter.required ? `${parameter.name} *` : parameter.name, input))),
    body && field("Body", body),
    h("div", { class: "buttons" }, h("button", { type: "submit", class: `button ${method === "delete" ? "danger" : "primary"}` }, "Send")),
    answer);
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
  const found = await session();
  const response = await fetch(address("openapi.json"));
  const api = await response.json();
  schemas = api.components.schemas;
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
    found.open ? "" : note("wait", h("p", {}, "Requests need a token: ", h("a", { href: "index.html" }, "sign in"), " first to try them.")),
    search(),
    ...[...tags].map(([tag, operations]) => h("section", { class: "stack" }, h("h2", {}, tag), operations)),
    h("section", { class: "stack" }, h("h2", {}, "Schemas"), Object.entries(api.components.schemas).map(([name, one]) => schema(name, one))));
  follow();
}

/** Shows only the operations and schemas that have a text in them. */
function search() {
  const input = h("input", { type: "search", placeholder: "Search", "aria-label": "Search operations and schemas", autocomplete: "off" });
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const one of root.querySelectorAll("details.operation")) {
      const text = `${one.id} ${one.querySelector("summary").textContent}`.toLowerCase();
      one.hidden = !words.every((word) => text.includes(word));
    }
    for (const section of root.querySelectorAll("section")) section.hidden = !section.querySelector("details.operation:not([hidden])");
  });
  return input;
}

/** Opens what the address points at. */
function follow() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target) {
    target.hidden = false;
    target.open = true;
    target.scrollIntoView();
  }
}

window.addEventListener("hashchange", follow);
draw().catch((error) => root.replaceChildren(h("p", { role: "alert" }, error.message)));
