// One item: its picture, its fields, what is alike, and what can be done with it.

import { call, of } from "../api.js";
import { go } from "../address.js";
import { remove, setLabel } from "../edits.js";
import { bar, button, fill, h, notice, told } from "../dom.js";
import { thumbnail } from "../thumbnails.js";

const NEIGHBOURS = 12;

/** Make the dialog that shows the item that the address names; `update` follows the address. */
export function itemDialog(app) {
  const dialog = h("dialog", { class: "item", "aria-label": "Item", onclose: () => app.itemOf() && go({ item: null }),
    onclick: (event) => event.target === dialog && dialog.close() });
  document.body.append(dialog);
  let shown = "";
  let running = new AbortController();

  async function update(key) {
    if (!key || !app.collection) {
      shown = "";
      running.abort();
      if (dialog.open) dialog.close();
      return;
    }
    const name = `${app.collection}/${key}`;
    if (name === shown && dialog.open) return;
    shown = name;
    running.abort();
    const { signal } = (running = new AbortController());
    fill(dialog, h("p", { class: "said" }, "…"));
    if (!dialog.open) dialog.showModal();
    try {
      const [{ items }, { results: [near] }] = await Promise.all([
        call("POST", of(app.collection, "items/get"), { json: { keys: [key] }, signal, read: true }),
        call("POST", of(app.collection, "search"), { json: { queries: [{ key }], k: NEIGHBOURS }, signal, read: true }),
      ]);
      if (items.length) draw(items[0], near.neighbours ?? []);
      else fill(dialog, close(), notice("There is no such item", `“${key}” was deleted, or never written: go back and choose another.`));
    } catch (error) {
      if (error.name !== "AbortError") fill(dialog, close(), notice("The item cannot be shown", error.message));
    }
  }

  const close = () => button("Close", () => dialog.close(), { drawing: "close", kind: "close" });

  function draw(item, neighbours) {
    const known = app.knownLabels(app.collection);
    const label = h("input", { value: item.label ?? "", list: "labels", "aria-label": "Label", placeholder: "no label", autocomplete: "off", maxlength: 1024, dir: "auto" });
    const list = h("datalist", { id: "labels" });
    known.then((labels) => fill(list, labels.map((one) => h("option", { value: one })))).catch(() => {});
    const again = () => ((shown = ""), update(item.key));
    const labelled = h("form", { class: "labelling edit", onsubmit: async (event) => {
      event.preventDefault();
      await app.attempt(() => setLabel(app.collection, [item.key], label.value.trim()), { undo: true });
      again();
    } }, label, list, h("button", { type: "submit", class: "button primary" }, "Set label"));
    const ask = (asked) => go({ collection: app.collection, ...asked }, { view: "search", fresh: true });
    fill(dialog, close(),
      h("div", { class: "big" }, thumbnail(app.collection, item)),
      h("div", { class: "about" },
        h("h2", {}, told(item.key)),
        item.label ? h("p", { class: "read-only" }, told(item.label)) : null,
        labelled,
        h("div", { class: "row" },
          button("More like this", () => ask({ like: item.key }), { drawing: "plus", withText: true, kind: "primary" }),
          button("Delete", async () => {
            if (await app.attempt(() => remove(app.collection, [item.key]), { undo: true })) dialog.close();
          }, { drawing: "trash", withText: true, kind: "edit danger" })),
        fields(item)),
      h("section", { class: "near" }, h("h3", {}, "Neighbours"),
        neighbours.length ? h("ul", {}, neighbours.map((one) => h("li", {}, h("button", {
          type: "button", "aria-label": `${one.key}, similarity ${one.similarity.toFixed(3)}`, onclick: () => go({ item: one.key }),
        }, thumbnail(app.collection, one), h("span", { class: "similarity" }, bar(one.similarity), h("span", {}, one.similarity.toFixed(3))), told(one.label ?? one.key, { class: "label" })))))
          : h("p", {}, "It is the only one.")));
  }

  return { update, again: () => ((shown = ""), update(app.itemOf())), isOpen: () => dialog.open };
}

function fields(item) {
  const rows = [...flat(item.payload ?? {}, ""), ["written as", `number ${item.sequence}`]];
  if (item.content_hash) rows.push(["SHA-256", item.content_hash]);
  return h("dl", { class: "fields" }, rows.map(([name, value]) => [h("dt", {}, told(name)), h("dd", {}, told(String(value)))]));
}

function flat(value, path) {
  return Object.entries(value).flatMap(([name, one]) => {
    const where = path ? `${path}.${name}` : name;
    const inside = one && typeof one === "object" && !Array.isArray(one) && Object.keys(one).length;
    return inside ? flat(one, where) : [[where, typeof one === "string" ? one : JSON.stringify(one)]];
  });
}
