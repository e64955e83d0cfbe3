// Map: every item as a point, the alike near one another; colour, look closer, draw round some and see them in the grid.

import { call, of, send } from "../api.js";
import { go, toggle } from "../address.js";
import { Camera, handle } from "../camera.js";
import { button, count, field, fill, h, later, notice, plural, told } from "../dom.js";
import { Grid } from "../grid.js";
import { cornersOf, OTHER, pairs, parsed, rgb, WITHOUT_VALUE } from "../palette.js";
import { embedding, hold, picture } from "../pictures.js";
import { Cells, renderer, SIDE } from "../points.js";
import { Selection } from "../selection.js";
import { thumbnail } from "../thumbnails.js";

const PAGE = 200;
const KEYS_AT_ONCE = 10_000;
const LISTED = 40;
const NEAR_PX = 14;
const FIELDS_SHOWN = 5;

export function mount(root, app) {
  let params = new URLSearchParams();
  let asked = "";
  let map = null;
  let lassoed = new Uint32Array();
  let line = null;
  let drawing = false;
  let marks = [];
  let running = new AbortController();
  const items = new Map();
  const collection = () => app.collection;

  const canvas = h("canvas", { class: "points", "aria-hidden": "true" });
  const above = h("canvas", { class: "above", "aria-hidden": "true" });
  const pins = h("div", { class: "pins" });
  const card = h("div", { class: "card-over", role: "status", hidden: true });
  const lassoButton = button("Lasso", () => setDrawing(!drawing), { drawing: "lasso", "aria-pressed": "false" });
  const tools = h("div", { class: "map-tools" }, lassoButton, button("Closer", () => camera.grow(1.5), { drawing: "plus" }),
    button("Further away", () => camera.grow(1 / 1.5), { drawing: "minus" }), button("All of it", () => camera.set(SIDE / 2, SIDE / 2, 1), { drawing: "whole" }));
  const stage = h("div", { class: "stage", tabindex: 0, role: "application", "aria-label": "Map", onkeydown: (event) => key(event) }, canvas, above, pins, card, tools);
  const by = h("select", { onchange: () => go({ by: by.value, only: null }) });
  const legend = h("ul", { class: "values" });
  const side = h("aside", { class: "facets", "aria-label": "Colours" }, field("Colour by", by), legend);
  const said = h("p", { class: "said", role: "status" });
  const found = h("p", { class: "said", role: "status" });
  const all = button("Select all", () => selectAll().catch((error) => failed(error, found)), {});
  const results = h("section", { class: "results", "aria-label": "Items" }, said, stage);
  const grid = new Grid({
    collection, open: (item) => go({ item: item.key }), isSelected: (item) => selection.has(item),
    select: (item, index, { range }) => selection.toggle(grid.items, item, index, range),
    more: (item) => go({ collection: collection(), like: item.key }, { view: "search", fresh: true }),
    need: (index) => load(index),
  });
  const selection = new Selection({ collection, mark: () => grid.mark(), app });
  const chosen = h("div", { class: "row spread", hidden: true }, found, h("div", { class: "row" }, all, button("Remove the lasso", () => go({ lasso: null }), {})));
  const columns = h("div", { class: "columns" }, side, results);
  const empty = h("div", { hidden: true });
  results.append(chosen, grid.element);
  fill(root, empty, columns, selection.bar);

  const draws = renderer(canvas);
  let remembered = "";
  const remember = later(300, () => {
    remembered = camera.zoom === 1 && camera.x === SIDE / 2 && camera.y === SIDE / 2 ? "" : [camera.x, camera.y, camera.zoom * 100].map(Math.round).join(",");
    go({ at: remembered }, { replace: true });
  });
  let moving = false;
  let quick = false;
  const settle = later(160, () => ((quick = false), draw()));
  const camera = new Camera(stage, () => {
    // What moves is drawn by some of its points, so that it moves as fast as the hand.
    quick = !moving;
    draw();
    if (quick) settle(), remember();
  });
  handle(stage, camera, { lassoing: () => drawing, drawn, over: (place) => hover(place && nearest(place)), clicked: (place) => openItem(nearest(place)) });
  const sizes = new ResizeObserver(() => draw());
  sizes.observe(stage);
  const flipped = () => map && (coloured(), listed(), draw());
  const themes = new MutationObserver(flipped);
  themes.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", flipped);

  const colours = new Uint8Array(4 * 256);
  let frame = 0;
  let hovered = -1;

  async function update(now) {
    const before = new URLSearchParams(params);
    params = new URLSearchParams(now);
    const unmoved = (now.get("at") ?? "") === remembered;
    [before, now].forEach((one) => ["at", "item"].forEach((name) => one.delete(name)));
    // The address has only followed the hand.
    if (map && asked && unmoved && before.toString() === now.toString()) return;
    columns.hidden = !collection();
    if (!collection()) return;
    if (collection() !== selection.of) selection.clear();
    selection.of = collection();
    const wanted = JSON.stringify([collection(), params.get("by") ?? "label"]);
    if (wanted !== asked) {
      asked = wanted;
      await loadMap();
    }
    if (!map) return;
    moving = true;
    const at = (params.get("at") ?? "").split(",").map(Number);
    if (at.length === 3 && at.every(Number.isFinite)) camera.set(at[0], at[1], at[2] / 100);
    else camera.set(SIDE / 2, SIDE / 2, 1);
    moving = false;
    remembered = params.get("at") ?? "";
    coloured();
    listed();
    lasso();
    draw();
    await mark();
  }

  async function loadMap() {
    running.abort();
    const { signal } = (running = new AbortController());
    stage.classList.add("busy");
    try {
      const response = await send("GET", of(collection(), "map/points"), { params: { field: params.get("by") ?? "label" }, signal });
      map = parsed(await response.arrayBuffer());
      map.cells = new Cells(map.positions);
      draws.set(map.positions, map.codes);
      items.clear();
      hover(-1);
      columns.hidden = false;
      fill(empty);
      empty.hidden = true;
      stage.setAttribute("aria-label", `Map of ${plural(map.count, "item")}: arrows move, plus and minus zoom, Enter opens the item in the middle, s takes what is in view`);
      const newer = map.unplaced ? `; ${count(map.unplaced)} newer ones get their place by \`imagekin map ${collection()}\`` : "";
      fill(said, `${plural(map.count, "item")}${newer}`);
      void fields(signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      map = null;
      asked = "";
      columns.hidden = true;
      const none = error.code === "FAILED_PRECONDITION" && error.message.includes("imagekin map");
      fill(empty, notice(none ? "No map yet" : "The map cannot be shown", none ? "A map lays every item out in two dimensions, the alike near one another. Make it beside the server, then look again:" : error.message,
        none && `imagekin map ${collection()} --data-dir DATA`, button("Look again", () => update(params), { kind: "primary" })));
      empty.hidden = false;
    } finally {
      stage.classList.remove("busy");
    }
  }

  /** Offer the fields by which points can be coloured. */
  async function fields(signal) {
    const names = new Set(["label"]);
    const first = await call("POST", of(collection(), "scroll"), { json: { page_size: PAGE }, signal, read: true }).catch(() => ({ items: [] }));
    for (const { payload } of first.items) {
      for (const [name, value] of Object.entries(payload ?? {})) if (typeof value !== "object") names.add(`payload.${/^[\w-]+$/.test(name) ? name : JSON.stringify(name)}`);
    }
    names.add(params.get("by") ?? "label");
    fill(by, [...names].slice(0, 60).map((name) => h("option", { value: name }, name)));
    by.value = params.get("by") ?? "label";
  }

  /** Fill in the colour of each code; one that is dimmed has no opacity. */
  function coloured() {
    const dark = getComputedStyle(stage).getPropertyValue("--dark").trim() === "1";
    const only = params.getAll("only");
    for (let code = 0; code < 256; code += 1) {
      const test = code && code <= map.values.length ? JSON.stringify(map.values[code - 1].value) : WITHOUT_VALUE[code];
      colours.set([...rgb(code, dark), !only.length || only.includes(test) ? 255 : 0], 4 * code);
    }
  }

  function listed() {
    const only = new Set(params.getAll("only"));
    const without = map.codes.reduce((sum, code) => sum + (code === 0), 0);
    const further = map.codes.reduce((sum, code) => sum + (code === OTHER), 0);
    const rows = map.values.slice(0, LISTED).map(({ value, count: number }, at) => ({ name: String(value), number, code: at + 1, test: JSON.stringify(value) }));
    if (map.values.length > LISTED) rows.push({ name: `${count(map.values.length - LISTED)} more values`, number: "" });
    if (further) rows.push({ name: "other values", number: further, code: OTHER, test: WITHOUT_VALUE[OTHER], none: true });
    if (without) rows.push({ name: "none", number: without, code: 0, test: WITHOUT_VALUE[0], none: true });
    fill(legend, rows.map(({ name, number, code, test, none }) => (test === undefined ? h("li", { class: "said" }, name)
      : h("li", {}, h("button", { type: "button", class: "value swatched", "aria-pressed": String(only.has(test)), onclick: () => toggle("only", test, !only.has(test)),
        vars: { "--swatch": `rgb(${colours.slice(4 * code, 4 * code + 3).join(" ")})` } }, h("span", { class: "swatch", "aria-hidden": "true" }), told(name, none ? { class: "none" } : {}), h("span", { class: "number" }, count(number)))))));
  }

  function draw() {
    if (!frame) frame = requestAnimationFrame(drawNow);
  }

  function drawNow() {
    frame = 0;
    if (!map || !stage.clientWidth) return;
    const base = map.count < 2_000 ? 7 : map.count < 20_000 ? 5 : map.count < 200_000 ? 3 : 2;
    draws.draw(camera, Math.min(16, base * Math.max(1, camera.zoom ** 0.4)), colours, params.has("only"), quick);
    const context = above.getContext("2d");
    const ratio = devicePixelRatio || 1;
    Object.assign(above, { width: Math.round(stage.clientWidth * ratio), height: Math.round(stage.clientHeight * ratio) });
    context.scale(ratio, ratio);
    context.strokeStyle = context.fillStyle = getComputedStyle(above).color;
    context.lineWidth = 2;
    const corners = line ?? pairs(polygon()).map(([x, y]) => camera.to(x, y));
    if (corners.length > 1) {
      context.beginPath();
      corners.forEach(([x, y], at) => (at ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.closePath();
      context.stroke();
      context.globalAlpha = 0.1;
      context.fill();
      context.globalAlpha = 1;
    }
    if (hovered >= 0) {
      const [x, y] = camera.to(map.positions[2 * hovered], map.positions[2 * hovered + 1]);
      context.beginPath();
      context.arc(x, y, 9, 0, 7);
      context.stroke();
      card.style.transform = `translate(${Math.round(Math.min(x + 16, stage.clientWidth - 236))}px, ${Math.round(Math.max(4, Math.min(y - 20, stage.clientHeight - card.offsetHeight - 4)))}px)`;
    }
    for (const { element, x, y } of marks) {
      const [left, top] = camera.to(x, y);
      element.style.transform = `translate(${left}px, ${top}px)`;
    }
  }

  const allows = (number) => !params.has("only") || colours[4 * map.codes[number] + 3] > 0;
  const nearest = ([x, y], within = NEAR_PX) => (map ? map.cells.nearest(x, y, within / camera.scale, allows) : -1);
  const middle = () => nearest([camera.x, camera.y], 4 * NEAR_PX);

  /** Show which item is under the pointer, or in the middle for the keyboard. */
  function hover(number) {
    if (number === hovered || (!map && number >= 0)) return;
    hovered = number ?? -1;
    card.hidden = hovered < 0 || !items.has(hovered);
    if (hovered >= 0) items.has(hovered) ? describe(hovered) : ask();
    draw();
  }

  const ask = later(60, async () => {
    const number = hovered;
    if (number < 0) return;
    try {
      const [item] = await fetchItems([number], running.signal);
      items.set(number, item);
      if (hovered === number) describe(number);
    } catch (error) {
      if (error.name !== "AbortError") hover(-1);
    }
  });

  function describe(number) {
    const item = items.get(number);
    const rows = Object.entries(item.payload ?? {}).filter(([, value]) => typeof value !== "object").slice(0, FIELDS_SHOWN);
    fill(card, thumbnail(collection(), item), item.label ? told(item.label, { class: "label" }) : h("span", { class: "label none" }, "no label"), told(item.key, { class: "key" }),
      h("dl", { class: "fields" }, rows.map(([name, value]) => [h("dt", {}, told(name)), h("dd", {}, told(String(value)))])));
    card.hidden = false;
    draw();
  }

  /** Return the items of some numbers; one that was deleted since has its key alone. A map that is out of date is loaded again. */
  async function fetchItems(numbers, signal) {
    const keys = await keysOf(numbers, signal);
    const got = await call("POST", of(collection(), "items/get"), { json: { keys }, signal, read: true });
    const known = new Map(got.items.map((item) => [item.key, item]));
    return keys.map((one) => known.get(one) ?? { key: one, label: "" });
  }

  async function keysOf(numbers, signal) {
    try {
      return (await call("POST", of(collection(), "map/keys"), { json: { version: map.version, numbers: [...numbers] }, signal, read: true })).keys;
    } catch (error) {
      if (error.code === "FAILED_PRECONDITION") changed();
      throw error;
    }
  }

  const failed = (error, where = said) => error.name !== "AbortError" && fill(where, h("span", { class: "error" }, error.message));

  async function openItem(number) {
    if (number < 0) return;
    try {
      go({ item: (await keysOf([number], running.signal))[0] });
    } catch (error) {
      failed(error);
    }
  }

  function drawn(corners, done) {
    line = done ? null : corners;
    if (done) {
      setDrawing(false);
      go({ lasso: corners.flatMap(([x, y]) => camera.at(x, y)).map(Math.round).join(",") });
    }
    draw();
  }

  function setDrawing(on) {
    drawing = on;
    lassoButton.setAttribute("aria-pressed", String(on));
    stage.classList.toggle("drawing", on);
  }

  const polygon = () => cornersOf(params.get("lasso") ?? "");

  /** Show what is within the lasso in the grid. */
  function lasso() {
    const corners = polygon();
    const within = corners.length ? map.cells.inside(corners).filter(allows) : new Uint32Array();
    const same = within.length === lassoed.length && within.every((number, at) => number === lassoed[at]) && grid.version === map.version;
    chosen.hidden = !corners.length;
    fill(found, within.length ? plural(within.length, "item") + " within the lasso" : "Nothing is within the lasso.");
    all.hidden = !within.length;
    if (same) return;
    lassoed = within;
    grid.version = map.version;
    if (!corners.length) selection.clear();
    grid.set(new Array(within.length).fill(undefined), within.length);
  }

  const loading = new Set();
  async function load(index) {
    const page = Math.floor(index / PAGE);
    const [within, { signal }] = [lassoed, running];
    for (const one of [page, page - 1]) {
      if (one < 0 || loading.has(one) || grid.items[one * PAGE]) continue;
      loading.add(one);
      try {
        const got = await fetchItems(within.slice(one * PAGE, (one + 1) * PAGE), signal);
        if (within === lassoed) got.forEach((item, at) => (grid.items[one * PAGE + at] = item));
      } catch (error) {
        // It is not asked for again until something else is: the grid would ask at once.
        return failed(error, found);
      } finally {
        loading.delete(one);
      }
      grid.draw();
    }
  }

  async function selectAll() {
    const keys = [];
    for (let at = 0; at < lassoed.length; at += KEYS_AT_ONCE) keys.push(...(await keysOf(lassoed.slice(at, at + KEYS_AT_ONCE), running.signal)));
    selection.set(keys);
  }

  /** Show where pictures that were dropped, and items of the address, lie by their neighbours. */
  async function mark() {
    const { signal } = running;
    const ids = params.getAll("picture").filter((id) => picture(id));
    const keys = params.getAll("mark");
    const model = app.modelOf(collection());
    if (!ids.length && !keys.length) return (marks = []), fill(pins);
    try {
      if (ids.length && !model) throw new Error("the server has no model that made this collection: start it with that model to place a picture");
      const vectors = await Promise.all(ids.map((id) => embedding(id, model.name)));
      const queries = [...vectors.map((vector) => ({ vector })), ...keys.map((one) => ({ key: one }))];
      const { results: places } = await call("POST", of(collection(), "map/places"), { json: { queries }, signal, read: true });
      marks = places.map(({ x = 0, y = 0, error }, at) => (error ? null : { x, y, element: h("div", { class: "pin" }, at < ids.length
        ? h("img", { src: picture(ids[at]).url, alt: "the picture that was dropped" }) : thumbnail(collection(), { key: keys[at - ids.length], label: "" })) })).filter(Boolean);
      fill(pins, marks.map(({ element }) => element));
      const failed = places.find(({ error }) => error)?.error;
      if (failed) fill(said, h("span", { class: "error" }, failed.message));
      draw();
    } catch (error) {
      failed(error);
    }
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target !== stage || !map) return;
    const step = stage.clientHeight / 8;
    const acts = {
      ArrowLeft: () => camera.pan(-step, 0), ArrowRight: () => camera.pan(step, 0), ArrowUp: () => camera.pan(0, -step), ArrowDown: () => camera.pan(0, step),
      "+": () => camera.grow(1.4), "=": () => camera.grow(1.4), "-": () => camera.grow(1 / 1.4), 0: () => camera.set(SIDE / 2, SIDE / 2, 1), Home: () => camera.set(SIDE / 2, SIDE / 2, 1),
      Enter: () => openItem(hovered >= 0 ? hovered : middle()), Escape: () => go({ lasso: null }),
      s: () => drawn([[1, 1], [stage.clientWidth - 1, 1], [stage.clientWidth - 1, stage.clientHeight - 1], [1, stage.clientHeight - 1]], true),
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    acts[event.key]();
    if (event.key !== "Enter") hover(middle());
  }

  const changed = later(200, () => ((asked = ""), void update(params)));

  return {
    update, selection, changed, loaded: () => grid.items.filter(Boolean).map((item) => item.key),
    show: (files) => go({ picture: hold(files) }),
    focus: () => stage.focus(),
    close() {
      running.abort();
      grid.close();
      selection.clear();
      sizes.disconnect();
      themes.disconnect();
      system.removeEventListener("change", flipped);
      cancelAnimationFrame(frame);
      draws.close();
    },
  };
}
