// The items that are selected, and the bar that says what can be done with them.

import { remove, setLabel } from "./edits.js";
import { button, count, fill, h, plural } from "./dom.js";

const ASKED_FROM = 50;

/** Selected keys of one collection; `mark` is called when they change, `say` and `attempt` show how an action went. */
export class Selection {
  constructor({ collection, mark, app }) {
    this.collection = collection;
    this.mark = mark;
    this.app = app;
    // The collection that the keys are of, where the view may change it.
    this.of = "";
    this.keys = new Set();
    this.anchor = 0;
    this.bar = h("div", { class: "selection", role: "region", "aria-label": "Selection", hidden: true });
  }

  has = (item) => this.keys.has(item.key);

  /** Select an item or take it out; a range goes from the item of the last call. */
  toggle(items, item, index, range) {
    if (range) {
      const [from, to] = [Math.min(this.anchor, index), Math.max(this.anchor, index)];
      for (const one of items.slice(from, to + 1)) if (one) this.keys.add(one.key);
    } else if (!this.keys.delete(item.key)) this.keys.add(item.key);
    this.anchor = index;
    this.show();
  }

  set(keys) {
    this.keys = new Set(keys);
    this.show();
  }

  clear = () => this.set([]);

  show() {
    this.mark();
    const keys = [...this.keys];
    document.body.classList.toggle("selecting", keys.length > 0);
    if (this.bar.hidden !== !keys.length) this.bar.hidden = !keys.length;
    if (this.bar.hidden) return;
    if (!this.said) {
      this.said = h("strong", { role: "status" });
      fill(this.bar, this.said,
        button("Set label", () => this.label(), { drawing: "tag", withText: true, kind: "edit" }),
        button("Delete", () => this.remove(), { drawing: "trash", withText: true, kind: "edit danger" }),
        button("Export keys", () => this.export(), { drawing: "save", withText: true }),
        button("Clear selection", this.clear, { drawing: "close" }));
    }
    this.said.textContent = `${count(keys.length)} selected`;
  }

  /** Ask for a label and set it. */
  async label() {
    const keys = [...this.keys];
    if (!keys.length || !this.app.mayWrite()) return;
    const label = await this.app.askLabel(`Label of ${plural(keys.length, "item")}`, this.collection());
    if (label !== null) await this.app.attempt(() => setLabel(this.collection(), keys, label), { undo: true });
  }

  async remove() {
    const keys = [...this.keys];
    if (!keys.length || !this.app.mayWrite()) return;
    if (keys.length >= ASKED_FROM && !(await this.app.confirm(`Delete ${plural(keys.length, "item")}?`, "Delete"))) return;
    if (await this.app.attempt(() => remove(this.collection(), keys), { undo: true })) this.clear();
  }

  /** Save the keys as a file, a line each. */
  export() {
    const url = URL.createObjectURL(new Blob([[...this.keys].join("\n"), "\n"], { type: "text/plain" }));
    h("a", { href: url, download: `${this.collection()}-keys.txt` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }
}
