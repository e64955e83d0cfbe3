// Ask: for a token, for a label, whether to go on; and say what the keys do.

import { button, fill, h } from "./dom.js";

/** Show a dialog with a form; resolves to what `answer` returns when it is sent, to null when it is closed. */
function ask(title, fields, done, { answer = () => true, danger = false } = {}) {
  return new Promise((resolve) => {
    let given = null;
    const form = h("form", { method: "dialog", onsubmit: () => (given = answer()) }, h("h2", {}, title), fields,
      h("div", { class: "row end" }, button("Cancel", () => dialog.close()), h("button", { type: "submit", class: `button ${danger ? "danger" : "primary"}` }, done)));
    const dialog = h("dialog", { class: "asks", "aria-label": title, onclose: () => (dialog.remove(), resolve(given)) }, form);
    document.body.append(dialog);
    dialog.showModal();
    (dialog.querySelector("input") ?? dialog.querySelector("[type=submit]"))?.focus();
  });
}

export function askToken(wrong) {
  const token = h("input", { type: "password", autocomplete: "off", "aria-label": "Token", required: true });
  return ask("This server wants a token", [
    wrong && h("p", { class: "error" }, "The token was not accepted."),
    h("p", {}, "Its operator gives tokens out. This browser keeps it until it is closed or you log out."), token,
  ], "Go on", { answer: () => token.value.trim() });
}

export function askLabel(title, labels) {
  const label = h("input", { list: "labels-to-set", autocomplete: "off", dir: "auto", "aria-label": "Label", placeholder: "empty removes the label" });
  const list = h("datalist", { id: "labels-to-set" });
  labels.then((known) => fill(list, known.map((value) => h("option", { value })))).catch(() => {});
  return ask(title, [label, list], "Set label", { answer: () => label.value.trim() });
}

export const confirm = (title, done) => ask(title, [h("p", {}, "It can be undone as long as this page stays open.")], done, { danger: true });

const KEYS = [
  ["1 2 3 4 5", "Search, Browse, Map, Review, Status"], ["/", "go to the key or the filter"], ["arrows", "move in the grid; with Shift: select"],
  ["Enter", "open the item"], ["x", "select the item"], ["Ctrl A", "select all"], ["m n", "more like it, less like it"],
  ["l", "set the label of what is selected"], ["Delete", "delete what is selected"], ["Ctrl Z", "undo"], ["t", "light or dark"], ["Esc", "close, clear the selection"], ["?", "this list"],
];

export function help() {
  const dialog = h("dialog", { class: "asks", "aria-label": "Keys", onclose: () => dialog.remove(), onclick: (event) => event.target === dialog && dialog.close() },
    h("h2", {}, "Keys"), h("dl", { class: "keys" }, KEYS.map(([keys, text]) => [h("dt", {}, keys.split(" ").map((key) => h("kbd", {}, key))), h("dd", {}, text)])),
    h("div", { class: "row end" }, button("Close", () => dialog.close(), { kind: "primary" })));
  document.body.append(dialog);
  dialog.showModal();
}
