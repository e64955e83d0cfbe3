// Put the page together: its views, the collection in use, keys, drops and pastes, notes and undo.

import { go, read } from "./address.js";
import { ApiError, call, hooks, of, send } from "./api.js";
import * as browse from "./views/browse.js";
import { askLabel, askToken, confirm, help } from "./dialogs.js";
import { button, fill, h, notice } from "./dom.js";
import { canUndo, changed, undo } from "./edits.js";
import { itemDialog } from "./views/item.js";
import * as map from "./views/map.js";
import { picturesOf } from "./pictures.js";
import * as review from "./views/review.js";
import * as search from "./views/search.js";
import * as status from "./views/status.js";

const VIEWS = { search, browse, map, review, status };
const NOTE_MS = 8_000;
const READS = "This token may only read: nothing was changed.";
const THEME = "imagekin-theme";

const app = {
  collections: [],
  models: [],
  collection: "",
  /** Load the collections and the models. */
  async refresh() {
    const [{ collections }, { models }] = await Promise.all([call("GET", "v1/collections"), call("GET", "v1/models")]);
    Object.assign(app, { collections, models });
    choose(read().params.get("collection") || app.collection);
  },
  /** Return the model that made a collection, undefined when the server does not have it. */
  modelOf: (name) => app.models.find((model) => model.space === app.collections.find((one) => one.name === name)?.space),
  itemOf: () => read().params.get("item"),
  async knownLabels(collection) {
    const { counts } = await call("POST", of(collection, "facets"), { json: { field: "label", limit: 1_000 }, read: true });
    return counts.map(({ value }) => String(value));
  },
  askLabel: (title, collection) => askLabel(title, app.knownLabels(collection)),
  confirm,
  mayWrite() {
    const may = !document.body.classList.contains("reads");
    if (!may) say(READS, { failed: true });
    return may;
  },
  /** Do something and say how it went; returns whether it succeeded. */
  async attempt(act, { undo: undoable = false } = {}) {
    try {
      say(await act(), { undoable });
      return true;
    } catch (error) {
      if (error.name === "AbortError") return false;
      if (error.code === "PERMISSION_DENIED") document.body.classList.add("reads");
      say(error.code === "PERMISSION_DENIED" ? READS : error.message, { failed: true });
      return false;
    }
  },
  noCollections: () => notice("No collection yet", "Fill one from a folder of pictures; this page then shows it.", "imagekin index shop photos/ --model model.onnx"),
};

const main = h("main", { id: "main" });
const chosen = h("select", { "aria-label": "Collection", onchange: () => go({ collection: chosen.value }, { fresh: true }) });
const tabs = h("nav", { "aria-label": "Views" }, Object.keys(VIEWS).map((name) => h("a", { href: `#${name}`, class: "tab", "data-view": name,
  onclick: (event) => (event.preventDefault(), visit(name)) }, name[0].toUpperCase() + name.slice(1))));
const away = h("p", { class: "away", role: "status", hidden: true }, "The server does not answer. This page goes on as soon as it does.");
const notes = h("div", { class: "notes", role: "status", "aria-live": "polite" });
const veil = h("div", { class: "veil", "aria-hidden": "true" }, h("span", {}, "Drop to search"));
const leave = button("Log out", () => app.attempt(end), { kind: "quiet leave", hidden: true });
const header = h("header", {}, h("a", { class: "brand", href: "#search", onclick: (event) => (event.preventDefault(), visit("search")) }, h("span", { class: "mark", "aria-hidden": "true" }), "imagekin"),
  tabs, chosen, h("div", { class: "row end" }, h("span", { class: "read-only" }, "read only"), leave, button("Light or dark", flip, { drawing: "sun", kind: "quiet" }), button("Keys", help, { drawing: "help", kind: "quiet" })));
document.body.append(h("a", { class: "skip", href: "#main", onclick: (event) => (event.preventDefault(), main.querySelector("input, button, a")?.focus()) }, "Skip to the content"), header, away, main, notes, veil);
const item = itemDialog(app);
let view = { name: "" };

function visit(name) {
  go({ collection: app.collection }, { view: name, fresh: true });
}

function choose(name) {
  const names = app.collections.map((one) => one.name);
  const known = names.includes(name);
  app.collection = known ? name : (names[0] ?? "");
  fill(chosen, names.map((one) => h("option", { value: one }, one)));
  chosen.value = app.collection;
  chosen.hidden = !names.length;
  return known || !name;
}

async function route() {
  const { view: asked, params } = read();
  const name = asked in VIEWS ? asked : "search";
  if (!choose(params.get("collection"))) say(`There is no collection “${params.get("collection")}”: this is ${app.collection || "none"}.`, { failed: true });
  if (view.name !== name) {
    view.shown?.close();
    fill(main);
    view = { name, shown: VIEWS[name].mount(main, app) };
    document.title = `imagekin · ${name}`;
    for (const tab of tabs.children) tab.toggleAttribute("aria-current", tab.dataset.view === name);
    if (!app.collections.length && name !== "status") main.prepend(app.noCollections());
  }
  item.update(params.get("item"));
  await view.shown.update(params);
}

/** Show a note for a while. */
function say(text, { failed = false, undoable = false } = {}) {
  const note = h("div", { class: `note ${failed ? "failed" : ""}` }, h("span", { dir: "auto" }, text),
    undoable && button("Undo", () => (note.remove(), app.attempt(undo)), { kind: "undo" }),
    button("Close", () => note.remove(), { drawing: "close", kind: "small" }));
  notes.append(note);
  while (notes.children.length > 3) notes.firstChild.remove();
  setTimeout(() => note.remove(), NOTE_MS * (failed || undoable ? 2 : 1));
}

function flip() {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  theme(dark ? "light" : "dark");
  document.cookie = `${THEME}=${dark ? "light" : "dark"}; path=${new URL(".", document.baseURI).pathname}; max-age=31536000; samesite=strict`;
}

function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
}

async function show(files) {
  if (!files.length) return;
  if (!app.collection) return say("There is no collection to search: fill one first.", { failed: true });
  if (!view.shown.show) go({ collection: app.collection }, { view: "search", fresh: true });
  view.shown.show(files);
}

/** Learn what the caller may do, and show no more than that. */
async function access() {
  const { scope, token } = await call("GET", "v1/session");
  document.body.classList.toggle("reads", scope === "read");
  leave.hidden = !token;
}

async function end() {
  await send("DELETE", "v1/session");
  location.reload();
}

hooks.ask = askToken;
hooks.begun = () => void access();
hooks.away = (is) => (away.hidden = !is);
changed.addEventListener("change", (/** @type {any} */ { detail }) => {
  // Only the last change can be taken back: an older note's button would take back another than it says.
  notes.querySelectorAll(".undo").forEach((one) => one.remove());
  if (detail.collection !== app.collection) return;
  view.shown?.changed?.(detail);
  if (detail.undone && item.isOpen()) item.again();
});
addEventListener("hashchange", () => void route());
addEventListener("popstate", () => void route());
addEventListener("paste", (event) => {
  const files = picturesOf(event.clipboardData);
  if (files.length) (event.preventDefault(), show(files));
});
let dragged = 0;
const drags = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragenter", (event) => drags(event) && ((dragged += 1), veil.classList.add("shown")));
addEventListener("dragleave", (event) => drags(event) && --dragged <= 0 && veil.classList.remove("shown"));
addEventListener("dragover", (event) => drags(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!drags(event)) return;
  event.preventDefault();
  dragged = 0;
  veil.classList.remove("shown");
  const files = picturesOf(event.dataTransfer);
  if (files.length) show(files);
  else say("That is no picture: drop a JPEG, PNG, WebP or another image file.", { failed: true });
});

addEventListener("keydown", (event) => {
  const target = /** @type {HTMLElement} */ (event.target);
  const typing = target.closest?.("input:not([type=range]), select, textarea");
  const selection = view.shown?.selection;
  if (document.querySelector("dialog[open]") || event.altKey) return;
  const command = event.ctrlKey || event.metaKey;
  const acts = command ? { z: () => canUndo() && app.attempt(undo), a: () => selection?.set(selectable()) } : {
    1: () => visit("search"), 2: () => visit("browse"), 3: () => visit("map"), 4: () => visit("review"), 5: () => visit("status"), "/": () => view.shown.focus(),
    l: () => selection?.label(), Delete: () => selection?.remove(), t: flip, "?": help, Escape: () => selection?.clear(),
  };
  const act = acts[event.key];
  if (!act || (typing && event.key !== "Escape")) return;
  event.preventDefault();
  if (typing) return target.blur();
  act();
});
const selectable = () => view.shown.loaded?.() ?? [];

async function start() {
  theme(document.cookie.match(`(?:^|; )${THEME}=(light|dark)(?:;|$)`)?.[1]);
  fill(main, h("p", { class: "said" }, "…"));
  try {
    await access();
    await app.refresh();
    fill(main);
    await route();
  } catch (error) {
    const why = error instanceof ApiError ? error.message : String(error);
    fill(main, notice("The server cannot be used", why, null, button("Try again", () => void start(), { kind: "primary" })));
  }
}

void start();
