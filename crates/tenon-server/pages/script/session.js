// Where the server wants a token: asking for it.

import { session } from "./api.js";
import { h, field } from "./dom.js";
import { problem } from "./dialog.js";
import { t } from "./texts.js";

/** Shows the form in place of everything; resolves when the session is open. */
export function signIn(root) {
  return new Promise((resolve) => {
    const token = h("input", { type: "password", required: true, autocomplete: "current-password", name: "token" });
    const problems = h("div", { "aria-live": "polite" });
    const submit = async (event) => {
      event.preventDefault();
      problems.replaceChildren();
      try {
        resolve(await session(token.value.trim()));
      } catch (error) {
        problems.replaceChildren(problem(error));
        token.select();
      }
    };
    root.replaceChildren(h("main", { class: "login" }, h("form", { class: "panel", onsubmit: submit },
      h("div", { class: "brand" }, h("img", { src: "logo.svg", alt: "" }), "Tenon"),
      h("div", {}, h("h1", {}, t("login.title")), h("p", { class: "quiet small" }, t("login.lead"))),
      field(t("login.token"), token), problems,
      h("button", { type: "submit", class: "button primary" }, t("login.title")))));
    token.focus();
  });
}
