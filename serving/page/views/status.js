// Status: models, collections, and what the server's own measurements say.

import { call, send } from "../api.js";
import { go } from "../address.js";
import { bytes, count, fill, h, notice, percent } from "../dom.js";

const EVERY_MS = 2_000;
const KEPT = 60;

export function mount(root, app) {
  const cards = h("div", { class: "cards" });
  const tables = h("div", {});
  fill(root, h("section", { class: "status" }, cards, tables));
  const history = [];
  let timer = 0;
  let closed = false;

  async function look() {
    try {
      const text = await (await send("GET", "metrics")).text();
      history.push({ at: performance.now(), values: parse(text) });
      if (history.length > KEPT) history.shift();
      if (!closed) fill(cards, measured(history));
    } catch (error) {
      if (!closed) fill(cards, h("p", { class: "said" }, error.code === "NOT_FOUND" ? "Nothing is measured: start the server with --metrics-address." : error.message));
    }
    if (!closed) timer = setTimeout(look, document.hidden ? 5 * EVERY_MS : EVERY_MS);
  }

  async function update() {
    try {
      await app.refresh();
      const { models } = await call("GET", "v1/models");
      fill(tables, collections(app.collections, app), modelTable(models));
    } catch (error) {
      fill(tables, notice("The server does not say", error.message));
    }
  }

  look();
  return { update, changed: update, focus: () => {}, close: () => ((closed = true), clearTimeout(timer)) };
}

function table(caption, head, rows) {
  return h("div", { class: "scrolled", tabindex: 0, role: "region", "aria-label": caption }, h("table", {}, h("caption", {}, caption),
    h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell)))))));
}

function collections(all, app) {
  if (!all.length) return app.noCollections();
  return table("Collections", ["name", "items", "labelled", "index", "recall@10", "on disk", "made"], all.map((one) => [
    h("a", { href: `#browse?collection=${encodeURIComponent(one.name)}`, onclick: (event) => (event.preventDefault(), go({ collection: one.name }, { view: "browse", fresh: true })) }, one.name),
    count(one.count), one.count ? percent(one.labelled / one.count) : "–", `${one.index_kind}${one.index_device ? ` on ${one.index_device}` : ""}`,
    one.recall === undefined ? "–" : one.recall.toFixed(3), bytes(one.disk_bytes), new Date(one.created_at).toLocaleString(),
  ]));
}

function modelTable(models) {
  return table("Models", ["name", "embedding space", "components", "picture", "classes"], models.map((one) => [
    one.name, h("code", {}, one.space), one.dim, `${one.image_width} × ${one.image_height}`, one.class_names?.length || "–",
  ]));
}

/** Parse the text form of Prometheus: values by name, each with its labels. */
export function parse(text) {
  const values = new Map();
  for (const line of text.split("\n")) {
    const found = /^(\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    const labels = Object.fromEntries([...(found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value]));
    if (!values.has(found[1])) values.set(found[1], []);
    values.get(found[1]).push({ labels, value: Number(found[3]) });
  }
  return values;
}

/** @type {(values: Map<string, any[]>, name: string, keep?: (labels: any) => boolean) => number} */
const sum = (values, name, keep = () => true) => (values.get(name) ?? []).filter(({ labels }) => keep(labels)).reduce((total, one) => total + one.value, 0);

function measured(history) {
  const now = history.at(-1);
  const pairs = history.slice(1).map((one, at) => [history[at], one]);
  const rate = (keep) => pairs.map(([old, one]) => Math.max(0, (sum(one.values, "imagekin_calls_total", keep) - sum(old.values, "imagekin_calls_total", keep)) / ((one.at - old.at) / 1000)));
  const waiting = history.map((one) => sum(one.values, "imagekin_queued_images") + sum(one.values, "imagekin_queued_searches"));
  const failed = ({ code }) => code !== "OK";
  const [rates, errors] = [rate(), rate(failed)];
  return [
    card("Calls a second", (rates.at(-1) ?? 0).toFixed(1), `${count(sum(now.values, "imagekin_calls_total"))} since the start`, rates),
    card("Latency", latency(history, 0.5), `95 of 100 calls ${latency(history, 0.95)}`),
    card("Waiting", count(waiting.at(-1)), `${count(sum(now.values, "imagekin_calls_in_flight"))} calls in work`, waiting),
    card("Errors a second", (errors.at(-1) ?? 0).toFixed(1), `${count(sum(now.values, "imagekin_calls_total", failed))} failed, ${count(sum(now.values, "imagekin_rejections_total"))} refused`, errors),
  ];
}

/** Return a quantile of the calls of the last two minutes, or of all when there was none, from the buckets. */
function latency(history, share) {
  const of = (values) => {
    const buckets = new Map();
    for (const { labels, value } of values.get("imagekin_call_seconds_bucket") ?? []) buckets.set(labels.le, (buckets.get(labels.le) ?? 0) + value);
    return buckets;
  };
  const [old, now] = [of(history[0].values), of(history.at(-1).values)];
  let buckets = [...now].map(([le, value]) => [Number(le === "+Inf" ? Infinity : le), value - (old.get(le) ?? 0)]);
  if (!buckets.at(-1)?.[1]) buckets = [...now].map(([le, value]) => [Number(le === "+Inf" ? Infinity : le), value]);
  const total = buckets.at(-1)?.[1];
  if (!total) return "–";
  const [limit] = buckets.find(([, value]) => value >= share * total);
  return limit === Infinity ? "long" : `≤ ${limit < 1 ? `${+(1000 * limit).toPrecision(3)} ms` : `${limit} s`}`;
}

function card(name, value, more, history) {
  return h("div", { class: "card" }, h("h3", {}, name), h("p", { class: "value" }, value), h("p", { class: "more" }, more), history?.length > 1 && line(history));
}

function line(values) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const most = Math.max(1, ...values);
  const path = document.createElementNS(space, "polyline");
  path.setAttribute("points", values.map((value, at) => `${((KEPT - values.length + at) * 100) / (KEPT - 1)},${29 - (27 * value) / most}`).join(" "));
  svg.setAttribute("viewBox", "0 0 100 30");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "line");
  svg.setAttribute("aria-hidden", "true");
  svg.append(path);
  return svg;
}
