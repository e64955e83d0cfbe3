// Change items so that every change can be undone: set labels, delete.

import { call, of, parseExactly } from "./api.js";
import { plural } from "./dom.js";

const MOST_UPDATES = 250;
const MOST_KEYS = 5_000;
const undone = [];

/** Told after each change: `(collection, keys, {labels} or {deleted: true} or {undone: true})`. */
export const changed = new EventTarget();

/** Return whether there is a change to take back. */
export const canUndo = () => undone.length > 0;

/** Set the label of items; an empty one removes it. Returns what was done, in words. */
export async function setLabel(collection, keys, label) {
  const done = (items) => (label ? `${items} labelled “${label}”` : `label of ${items} removed`);
  return setLabels(collection, new Map(keys.map((key) => [key, label])), done);
}

/** Set labels by key. Returns what was done, in words. */
export async function setLabels(collection, labels, done = (items) => `${items} labelled anew`) {
  const before = await get(collection, [...labels.keys()], false);
  await update(collection, before.map(({ key }) => ({ key, label: labels.get(key) })));
  const text = done(plural(before.length, "item"));
  remember(text, collection, [...labels.keys()], () => update(collection, before.map((item) => ({ key: item.key, label: item.label ?? "" }))));
  tell(collection, labels.keys(), { labels });
  return text;
}

/** Delete items. Their vectors, labels and payloads are kept by this page for an undo. */
export async function remove(collection, keys) {
  const before = await get(collection, keys, true);
  for (const some of chunks(keys, MOST_KEYS)) await call("POST", of(collection, "items/delete"), { json: { keys: some } });
  const text = `${plural(before.length, "item")} deleted`;
  remember(text, collection, keys, async () => {
    for (const some of chunks(before, MOST_UPDATES)) {
      const items = some.map(({ sequence, ...item }) => item);
      const { results } = await call("POST", of(collection, "items"), { json: { items } });
      const failed = results.find((result) => result.error);
      if (failed) throw new Error(failed.error.message);
    }
  });
  tell(collection, keys, { deleted: true });
  return text;
}

/** Take the last change back and return what it was, in words. */
export async function undo() {
  const last = undone.at(-1);
  if (!last) return "there is nothing to undo";
  await last.back();
  undone.splice(undone.indexOf(last), 1);
  tell(last.collection, last.keys, { undone: true });
  return `undone: ${last.text}`;
}

function remember(text, collection, keys, back) {
  undone.push({ text, collection, keys, back });
}

function tell(collection, keys, what) {
  changed.dispatchEvent(new CustomEvent("change", { detail: { collection, keys: new Set(keys), ...what } }));
}

async function get(collection, keys, withVectors) {
  const found = [];
  for (const some of chunks(keys, withVectors ? MOST_UPDATES : MOST_KEYS)) {
    const { items } = await call("POST", of(collection, "items/get"), {
      params: { vectors: "base64" }, json: { keys: some, with_vector: withVectors }, read: true, parse: parseExactly,
    });
    if (withVectors) await addThumbnails(collection, items);
    found.push(...items);
  }
  if (!found.length) throw new Error("these items are no longer there: reload the page");
  return found;
}

/** Add to items their thumbnails, which a server gives up with the last item that has them. */
async function addThumbnails(collection, items) {
  try {
    const { thumbnails } = await call("POST", of(collection, "thumbnails"), { json: { keys: items.map(({ key }) => key) }, read: true });
    thumbnails.forEach(({ jpeg }, at) => jpeg && (items[at].thumbnail = jpeg));
  } catch (error) {
    // A collection may have none, and an older server keeps none at all.
    if (!["NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"].includes(error.code)) throw error;
  }
}

async function update(collection, updates) {
  for (const some of chunks(updates, MOST_UPDATES)) await call("PATCH", of(collection, "items"), { json: { updates: some } });
}

function* chunks(values, size) {
  for (let at = 0; at < values.length; at += size) yield values.slice(at, at + size);
}
