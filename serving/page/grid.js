// A grid of items in which only what is near the window has elements: it scrolls with the page, a million items long.

import { bar, button, h, icon, told } from "./dom.js";
import { thumbnail } from "./thumbnails.js";

const WIDTH = 168;
const GAP = 12;
const CAPTION = 46;
const LINE = 18;
const AHEAD_PX = 500;
// Browsers place nothing further down than some 30 million pixels.
const MOST_PX = 15_000_000;

/**
 * Show items as tiles. The grid asks for what it needs and says what was done with a tile.
 *
 * `actions`: `collection()`, `open(item)`, `select(item, index, {range})`, `isSelected(item)`, and if it has them
 * `more(item)`, `less(item)`, `need(index)` for an item that is not there yet.
 */
export class Grid {
  constructor(actions) {
    this.actions = actions;
    this.items = [];
    this.total = 0;
    this.current = 0;
    this.tiles = new Map();
    // For whoever fills the grid: from which version of what.
    this.version = undefined;
    this.element = h("div", { class: "grid", role: "list", onkeydown: (event) => this.#key(event) });
    addEventListener("scroll", this.#redraw, { passive: true });
    this.sizes = new ResizeObserver(this.#redraw);
    this.sizes.observe(this.element);
  }

  #frame = 0;
  #redraw = () => {
    if (!this.#frame) this.#frame = requestAnimationFrame(() => ((this.#frame = 0), this.draw()));
  };

  /** Show other items; `total` is how many there are, of which some may not be there yet. */
  set(items, total = items.length) {
    this.items = items;
    this.total = total;
    this.current = Math.min(this.current, Math.max(0, total - 1));
    this.forget();
  }

  /** Draw every tile anew. */
  forget() {
    for (const tile of this.tiles.values()) tile.remove();
    this.tiles.clear();
    this.draw();
  }

  close() {
    removeEventListener("scroll", this.#redraw);
    this.sizes.disconnect();
    cancelAnimationFrame(this.#frame);
  }

  draw() {
    const width = this.element.clientWidth;
    if (!width) return;
    const least = width < 420 ? 132 : WIDTH;
    this.columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
    const side = (width + GAP) / this.columns - GAP;
    this.row = side + CAPTION + (this.items[0]?.similarity === undefined ? 0 : LINE) + (this.items[0]?.note ? LINE : 0) + GAP;
    const shown = Math.min(this.total, Math.floor(MOST_PX / this.row) * this.columns);
    this.element.style.height = `${Math.max(0, Math.ceil(shown / this.columns) * this.row - GAP)}px`;
    const top = this.element.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor((-top - AHEAD_PX) / this.row)) * this.columns;
    const last = Math.min(shown, Math.ceil((innerHeight - top + AHEAD_PX) / this.row) * this.columns);
    const stepped = this.side !== side;
    this.side = side;
    for (const [index, tile] of this.tiles) {
      if (index < first || index >= last || (tile.item !== this.items[index])) {
        tile.remove();
        this.tiles.delete(index);
      }
    }
    for (let index = first; index < last; index += 1) {
      const known = this.tiles.get(index);
      const tile = known ?? this.#tile(index);
      if (!known || stepped) {
        tile.style.width = `${side}px`;
        tile.style.transform = `translate(${(index % this.columns) * (side + GAP)}px, ${Math.floor(index / this.columns) * this.row}px)`;
      }
      if (!known) {
        this.tiles.set(index, tile);
        this.element.append(tile);
      }
    }
    if (last > 0 && !this.items[last - 1]) this.actions.need?.(last - 1);
  }

  /** Draw the marks of the selection anew. */
  mark() {
    for (const [index, tile] of this.tiles) {
      if (!this.items[index]) continue;
      const on = this.actions.isSelected(this.items[index]);
      tile.classList.toggle("selected", on);
      tile.querySelector(".choose")?.setAttribute("aria-pressed", String(on));
    }
  }

  /** Bring a tile into view and focus it. */
  focus(index) {
    this.current = Math.max(0, Math.min(this.total - 1, index));
    const y = Math.floor(this.current / this.columns) * this.row;
    const box = this.element.getBoundingClientRect();
    const above = 70 - (box.top + y);
    const below = box.top + y + this.row - innerHeight + 70;
    if (above > 0) scrollBy(0, -above);
    else if (below > 0) scrollBy(0, below);
    this.draw();
    for (const [at, tile] of this.tiles) {
      const opener = tile.querySelector(".open");
      if (opener) opener.tabIndex = at === this.current ? 0 : -1;
    }
    this.tiles.get(this.current)?.querySelector(".open")?.focus({ preventScroll: true });
  }

  #tile(index) {
    const item = this.items[index];
    if (!item) return Object.assign(h("div", { class: "tile waiting", role: "listitem", "aria-label": "loading" }), { item });
    const { collection, open, select, isSelected, more, less } = this.actions;
    const small = { kind: "small", tabindex: -1 };
    const tile = h("div", { class: "tile", role: "listitem", "aria-setsize": this.total, "aria-posinset": index + 1 },
      h("button", {
        type: "button", class: "open", tabindex: index === this.current ? 0 : -1,
        "aria-label": `${item.key}, ${item.label ? `label ${item.label}` : "no label"}${item.similarity === undefined ? "" : `, similarity ${item.similarity.toFixed(3)}`}`,
        onclick: (event) => (event.shiftKey || event.ctrlKey || event.metaKey ? select(item, index, { range: event.shiftKey }) : open(item)),
        onfocus: () => (this.current = index),
      }, thumbnail(collection(), item)),
      h("div", { class: "tools" },
        more && button(`More like ${item.key}`, () => more(item), { ...small, drawing: "plus" }),
        less && button(`Less like ${item.key}`, () => less(item), { ...small, drawing: "minus" })),
      h("button", {
        type: "button", class: "choose", tabindex: -1, "aria-pressed": String(isSelected(item)), "aria-label": `Select ${item.key}`,
        onclick: (event) => select(item, index, { range: event.shiftKey }),
      }, icon("check")),
      h("div", { class: "caption" },
        item.similarity !== undefined && h("div", { class: "similarity" }, bar(item.similarity), h("span", {}, item.similarity.toFixed(3))),
        item.label ? told(item.label, { class: "label" }) : h("span", { class: "label none" }, "no label"),
        item.note && told(item.note, { class: "note-line" }),
        told(item.key, { class: "key" })));
    tile.classList.toggle("selected", isSelected(item));
    return Object.assign(tile, { item });
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(innerHeight / this.row) - 1) * this.columns;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, PageDown: page, PageUp: -page, Home: -this.total, End: this.total };
    const item = this.items[this.current];
    if (event.key in steps) {
      if (event.shiftKey && item) this.actions.select(item, this.current, { range: true });
      this.focus(this.current + steps[event.key]);
    } else if (!item) return;
    else if (event.key === "x") this.actions.select(item, this.current, { range: false });
    else if (event.key === "m" && this.actions.more) this.actions.more(item);
    else if (event.key === "n" && this.actions.less) this.actions.less(item);
    else return;
    event.preventDefault();
  }
}
