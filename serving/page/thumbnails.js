// Show items by their thumbnails, few requests at a time; an item without one is shown by its label.

import { of, send } from "./api.js";
import { h } from "./dom.js";

const AT_ONCE = 6;
const MOST_KEPT = 800;
const kept = new Map();
const waiting = [];
let running = 0;
let absent = false;

/** Return an element that shows an item: its thumbnail once it is there, until then and without one its label. */
export function thumbnail(collection, item) {
  const shown = placeholder(item);
  if (!absent) {
    waiting.push({ collection, key: item.key, shown });
    // What was asked for last is looked at now.
    queueMicrotask(work);
  }
  return shown;
}

function placeholder(item) {
  const name = item.label || item.key;
  let hash = 7;
  for (const letter of name) hash = (hash * 31 + letter.codePointAt(0)) % 9973;
  const start = [...name.replace(/[^\p{L}\p{N}]+/gu, " ").trim()].slice(0, 2).join("") || "·";
  return h("span", { class: "picture", vars: { "--hue": (hash * 137) % 360 } }, h("bdi", { class: "initials", "aria-hidden": "true" }, start));
}

async function work() {
  if (running >= AT_ONCE || !waiting.length) return;
  const { collection, key, shown } = waiting.pop();
  if (!shown.isConnected || absent) return work();
  running += 1;
  try {
    show(shown, await urlOf(collection, key));
  } catch {
    // The placeholder stays.
  }
  running -= 1;
  work();
}

async function urlOf(collection, key) {
  const name = `${collection}/${key}`;
  let url = kept.get(name);
  if (url) return url;
  let response;
  try {
    response = await send("GET", of(collection, "thumbnail"), { params: { key } });
  } catch (error) {
    // A server that has no such route has no thumbnail of anything.
    absent ||= error.code === "NOT_FOUND" && error.message.startsWith("there is nothing at this path");
    throw error;
  }
  url = URL.createObjectURL(await response.blob());
  kept.set(name, url);
  if (kept.size > MOST_KEPT) {
    const [oldest, old] = kept.entries().next().value;
    URL.revokeObjectURL(old);
    kept.delete(oldest);
  }
  return url;
}

function show(shown, url) {
  const image = h("img", { src: url, alt: "", decoding: "async" });
  image.addEventListener("load", () => shown.classList.add("loaded"));
  image.addEventListener("error", () => image.remove());
  shown.append(image);
}
