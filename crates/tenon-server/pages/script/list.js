// A list: searched, sorted, turned over, and as it is now.

import { get } from "./api.js";
import { h, button, icon } from "./dom.js";
import { problem } from "./dialog.js";
import { listen } from "./events.js";
import { t } from "./texts.js";

const LIMIT = 50;
const kept = new Map();

/**
 * @param path where it comes from
 * @param columns `{ label, sort, class, cell(item) }`; the first is the name
 * @param events names of the events after which it is asked for again
 * @param empty what is shown where there is nothing at all
 * @param filters `{ label, name, choices: [[value, word]] }`
 * @param live called with each job event; true if it changed a row in place
 */
export function list({ path, label, columns, actions, events, empty, filters = [], sort = "-created", live }) {
  const state = kept.get(path) ?? { q: "", sort, offset: 0 };
  kept.set(path, state);
  const search = h("input", { type: "search", value: state.q, placeholder: t("search"), "aria-label": t("search.in", { list: label }), autocomplete: "off" });
  const total = h("span", { class: "total", role: "status" });
  const tbody = h("tbody");
  const heads = columns.map((column) => h("th", { scope: "col", class: column.class }, column.sort
    ? h("button", { type: "button", class: "sort", onclick: () => order(column) }, column.label) : column.label));
  const table = h("table", { class: "list" }, h("caption", { class: "hidden-text" }, label),
    h("thead", {}, h("tr", {}, heads, actions && h("th", { scope: "col" }, h("span", { class: "hidden-text" }, t("actions"))))), tbody);
  const pager = h("nav", { class: "pager", "aria-label": t("pages") });
  const panel = h("section", { class: "panel", "aria-label": label });
  const selects = filters.map((filter) => {
    const select = h("select", { "aria-label": filter.label, onchange: () => { state[filter.name] = select.value; state.offset = 0; load(); } },
      h("option", { value: "" }, filter.label), filter.choices.map(([value, word]) => h("option", { value }, word)));
    select.value = state[filter.name] ?? "";
    return h("div", {}, select);
  });
  const toolbar = h("div", { class: "toolbar" }, h("div", { class: "search" }, icon("search"), search), selects, total);
  const element = h("div", {}, toolbar, panel);
  let shown = null;
  let asked = 0;

  function order(column) {
    state.sort = state.sort === column.sort ? `-${column.sort}` : column.sort;
    state.offset = 0;
    load();
  }

  let typing;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => { state.q = search.value.trim(); state.offset = 0; load(); }, 180);
  });

  async function load() {
    asked += 1;
    const mine = asked;
    try {
      const { q, sort: by, offset, ...others } = state;
      const page = await get(path, { q, sort: by, offset, limit: LIMIT, ...others });
      if (mine !== asked) return;
      if (page.items.length === 0 && page.total > 0 && state.offset > 0) {
        state.offset = Math.max(0, Math.floor((page.total - 1) / LIMIT) * LIMIT);
        return load();
      }
      show(page);
    } catch (error) {
      if (mine === asked) panel.replaceChildren(h("div", { class: "panel-pad stack" }, problem(error), h("div", { class: "buttons" }, button(t("again"), load))));
    }
  }

  function row(item) {
    return h("tr", {}, columns.map((column, at) => h("td", { class: at === 0 ? `name ${column.class ?? ""}` : column.class, "data-label": at === 0 ? undefined : column.label }, h("div", {}, column.cell(item)))),
      actions && h("td", { class: "row-actions" }, h("div", { class: "buttons" }, actions(item))));
  }

  function show(page) {
    shown = page;
    const narrowed = state.q !== "" || filters.some((filter) => state[filter.name]);
    const nothing = page.total === 0 && !narrowed;
    toolbar.hidden = nothing;
    if (nothing) {
      panel.replaceChildren(empty());
      return;
    }
    heads.forEach((head, at) => {
      const { sort: by } = columns[at];
      if (by && state.sort === by) head.setAttribute("aria-sort", "ascending");
      else if (by && state.sort === `-${by}`) head.setAttribute("aria-sort", "descending");
      else head.removeAttribute("aria-sort");
    });
    total.textContent = t("total", { n: page.total });
    const focused = tbody.contains(document.activeElement) ? place(document.activeElement) : null;
    tbody.replaceChildren(...page.items.map(row));
    if (focused) tbody.rows[focused.row]?.querySelectorAll("a, button")[focused.at]?.focus();
    if (page.total === 0) {
      panel.replaceChildren(h("div", { class: "empty" }, h("h2", {}, t("nothing.found")), h("p", {}, t("nothing.found.hint")),
        button(t("nothing.found.all"), () => { search.value = ""; state.q = ""; filters.forEach((filter) => delete state[filter.name]); selects.forEach((select) => (select.firstChild.value = "")); load(); search.focus(); })));
      return;
    }
    const from = page.offset + 1;
    const to = page.offset + page.items.length;
    pager.replaceChildren(h("span", { class: "numeric" }, t("page.of", { from, to, total: page.total })),
      button(t("page.before"), () => { state.offset = Math.max(0, state.offset - LIMIT); load(); }, { kind: "small", disabled: page.offset === 0 }),
      button(t("page.next"), () => { state.offset += LIMIT; load(); }, { kind: "small", disabled: to >= page.total }));
    const parts = [h("div", { class: "table-wrap", tabIndex: -1 }, table)];
    if (page.total > LIMIT) parts.push(pager);
    if (table.isConnected && panel.childElementCount === parts.length) return;
    panel.replaceChildren(...parts);
  }

  function place(focused) {
    const tr = focused.closest("tr");
    return { row: [...tbody.rows].indexOf(tr), at: [...tr.querySelectorAll("a, button")].indexOf(focused) };
  }

  let waiting = null;
  const quiet = listen(events, (name, data) => {
    if (name === "job" && live && shown) {
      const at = shown.items.findIndex((item) => item.id !== undefined && item.id === data.id);
      const fits = at >= 0 && live(shown.items[at], data);
      if (fits) {
        shown.items[at] = data;
        tbody.rows[at]?.replaceWith(row(data));
        return;
      }
    }
    // Many at once are one.
    waiting ??= setTimeout(() => { waiting = null; if (element.isConnected) load(); }, 120);
  });
  load();
  return { element, load, leave: quiet };
}
