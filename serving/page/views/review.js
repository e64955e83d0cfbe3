// Review: likely wrong labels, near-duplicates, outliers and what to label next; accept what is proposed, delete, set labels.

import { lines, of } from "../api.js";
import { go } from "../address.js";
import { button, count, field, fill, h, plural } from "../dom.js";
import { setLabels } from "../edits.js";
import { Grid } from "../grid.js";
import { Selection } from "../selection.js";

const LISTS = { labels: "Likely wrong labels", duplicates: "Near-duplicates", outliers: "Outliers", next: "Label next" };
const EMPTY = {
  labels: "No label is doubtful.", duplicates: "No two items are so alike: lower the bound.",
  outliers: "Nothing stands out.", next: "Every item has a label.",
};
const proposal = (one) => (one.proposed ? `→ ${one.proposed}` : "");

export function mount(root, app) {
  let params = new URLSearchParams();
  let running = new AbortController();
  let found = null;
  let asked = "";
  const collection = () => app.collection;
  const grid = new Grid({
    collection, open: (item) => go({ item: item.key }), isSelected: (item) => selection.has(item),
    select: (item, index, { range }) => selection.toggle(grid.items, item, index, range),
    more: (item) => go({ collection: collection(), like: item.key }, { view: "search", fresh: true }),
  });
  const selection = new Selection({ collection, mark: () => grid.mark(), app });
  const least = h("input", { type: "number", min: 0.5, max: 1, step: 0.005, placeholder: "as fits", onchange: () => go({ duplicates: least.value }) });
  const tabs = h("div", { class: "row lists", role: "group", "aria-label": "Lists" });
  const said = h("p", { class: "said", role: "status" });
  const accept = button("Accept proposed labels", () => takeProposed(), { drawing: "check", withText: true, kind: "primary edit" });
  const spare = button("Select all but the first of each group", () => selectSpare(), {});
  const results = h("section", { class: "results", "aria-label": "Findings" },
    h("div", { class: "row spread" }, tabs, h("div", { class: "row" }, field("Duplicates from", least), accept, spare)), said, grid.element);
  fill(root, results, selection.bar);

  async function update(now) {
    params = new URLSearchParams(now);
    results.hidden = !collection();
    least.value = params.get("duplicates") ?? "";
    const question = `${collection()} ${least.value}`;
    if (collection() && question !== asked) {
      asked = question;
      selection.clear();
      await look();
    } else if (found) show();
  }

  /** Have the server review the collection; it tells how far it is meanwhile. */
  async function look() {
    running.abort();
    const { signal } = (running = new AbortController());
    found = null;
    show();
    try {
      await lines(of(collection(), "review"), { params: { duplicates: least.value }, signal }, (one) => {
        if (one.labels) found = one;
        else said.textContent = `Looking at each item: ${count(one.done)} of ${count(one.total)}`;
      });
      show();
    } catch (error) {
      if (error.name !== "AbortError") fill(said, h("span", { class: "error" }, error.message), " ", button("Try again", () => void look(), {}));
    }
  }

  function show() {
    const list = params.get("list") in LISTS ? params.get("list") : "labels";
    fill(tabs, Object.entries(LISTS).map(([name, text]) => h("button", { type: "button", class: "button quiet", "aria-pressed": String(name === list), onclick: () => go({ list: name }) },
      text, found && h("span", { class: "number" }, count(found[name].length)))));
    accept.hidden = !proposals(list).length;
    spare.hidden = list !== "duplicates" || !found?.duplicates.length;
    if (!found) return grid.set([]);
    const notes = { labels: proposal, duplicates: (one) => `group ${one.group}`, outliers: () => "", next: proposal };
    grid.set(found[list].map((one) => ({ ...one, similarity: one.score, note: notes[list](one) })));
    fill(said, found[list].length ? `${plural(found[list].length, "item")}; ${meaning(list)}` : found.items ? EMPTY[list] : "The collection is empty.",
      list === "labels" && found.items && found.next.length && " Items without a label are under Label next.",
      !found.complete && ` Only the first ${count(found.items)} items were asked: imagekin review takes all.`);
  }

  /** Say what the bars of a list show. */
  function meaning(list) {
    if (list === "labels") return "the bar is how doubtful the label is.";
    if (list === "outliers") return "the bar is the similarity to the nearest neighbours.";
    if (list === "next") return "their labels would tell the most; the bar is how uncertain they are.";
    const without = found.by_embeddings && ` ${plural(found.by_embeddings, "pair")} without thumbnails were compared by embeddings: imagekin thumbnails makes them, and tells copies more surely.`;
    return `the bar is the likeness to the nearest of the group.${without || ""}`;
  }

  function proposals(list) {
    return list === "labels" || list === "next" ? (found?.[list] ?? []).filter((one) => one.proposed) : [];
  }

  /** Set the proposed labels of the selected items, of all when none is selected. */
  async function takeProposed() {
    const taken = proposals(params.get("list") || "labels").filter((one) => !selection.keys.size || selection.has(one));
    if (!selection.keys.size && !(await app.confirm(`Set ${plural(taken.length, "proposed label")}?`, "Set labels"))) return;
    if (await app.attempt(() => setLabels(collection(), new Map(taken.map((one) => [one.key, one.proposed]))), { undo: true })) selection.clear();
  }

  function selectSpare() {
    const seen = new Set();
    selection.set(found.duplicates.filter(({ group }) => seen.has(group) || !seen.add(group)).map(({ key }) => key));
  }

  return {
    update, selection, loaded: () => grid.items.map((item) => item.key),
    // What was decided leaves the lists; what was undone is looked at anew.
    changed: ({ keys, undone }) => {
      if (undone || !found) return look();
      for (const list of Object.keys(LISTS)) found[list] = found[list].filter((one) => !keys.has(one.key));
      return show();
    },
    focus: () => least.focus(),
    close: () => (running.abort(), grid.close(), selection.clear()),
  };
}
