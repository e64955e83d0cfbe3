// Review: likely wrong labels, near-duplicates and outliers; accept what is proposed, delete, set labels.

import { call, of } from "./api.js";
import { go } from "./address.js";
import { button, count, field, fill, h, plural } from "./dom.js";
import { setLabels } from "./edits.js";
import { Gatherer } from "./findings.js";
import { Grid } from "./grid.js";
import { Selection } from "./selection.js";

const AT_ONCE = 128;
const NEIGHBOURS = 20;
const MOST_ITEMS = 50_000;
const LISTS = { labels: "Likely wrong labels", duplicates: "Near-duplicates", outliers: "Outliers" };
const DUPLICATES = 0.97;

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
  const least = h("input", { type: "number", min: 0.5, max: 1, step: 0.005, onchange: () => go({ duplicates: least.value }) });
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
    least.value = params.get("duplicates") ?? DUPLICATES;
    const question = `${collection()} ${least.value}`;
    if (collection() && question !== asked) {
      asked = question;
      selection.clear();
      await look();
    } else if (found) show();
  }

  /** Ask every item for its neighbours, some at a time. */
  async function look() {
    running.abort();
    const { signal } = (running = new AbortController());
    const gatherer = new Gatherer(Number(least.value));
    let [done, token] = [0, ""];
    found = null;
    show();
    try {
      const { count: total } = await call("GET", of(collection(), "count"), { signal });
      do {
        const page = await call("POST", of(collection(), "scroll"), { json: { page_token: token, page_size: AT_ONCE }, signal, read: true });
        token = page.next_page_token;
        if (!page.items.length) break;
        const queries = page.items.map(({ key }) => ({ key }));
        const { results: answers } = await call("POST", of(collection(), "search"), { json: { queries, k: NEIGHBOURS }, signal, read: true });
        page.items.forEach((item, at) => answers[at].error || gatherer.add(item, answers[at].neighbours));
        done += page.items.length;
        said.textContent = `Asking each item for its neighbours: ${count(done)} of ${count(total)}`;
      } while (token && done < MOST_ITEMS);
      found = { labels: gatherer.labels(), duplicates: gatherer.nearDuplicates(), outliers: gatherer.outliers(), partly: Boolean(token) };
      show();
    } catch (error) {
      if (error.name !== "AbortError") fill(said, h("span", { class: "error" }, error.message));
    }
  }

  function show() {
    const list = params.get("list") in LISTS ? params.get("list") : "labels";
    fill(tabs, Object.entries(LISTS).map(([name, text]) => h("button", { type: "button", class: "button quiet", "aria-pressed": String(name === list), onclick: () => go({ list: name }) },
      text, found && h("span", { class: "number" }, count(found[name].length)))));
    accept.hidden = list !== "labels" || !found?.labels.length;
    spare.hidden = list !== "duplicates" || !found?.duplicates.length;
    if (!found) return grid.set([]);
    const notes = { labels: (one) => `→ ${one.proposed}`, duplicates: (one) => `group ${one.group}`, outliers: () => "" };
    grid.set(found[list].map((one) => ({ ...one, similarity: one.score, note: notes[list](one) })));
    const empty = { labels: "No label is doubted by its neighbours.", duplicates: "No two items are so similar: lower the bound.", outliers: "Nothing stands out." };
    const meaning = { labels: "the bar is the share of the neighbours' votes against the label", duplicates: "the bar is the similarity to the nearest of the group", outliers: "the bar is the similarity to the nearest neighbours" };
    fill(said, found[list].length ? `${plural(found[list].length, "item")}; ${meaning[list]}` : empty[list],
      found.partly && ` Only the first ${count(MOST_ITEMS)} items were asked: imagekin review takes all.`);
  }

  /** Set the proposed labels of the selected items, of all when none is selected. */
  async function takeProposed() {
    const taken = found.labels.filter((one) => !selection.keys.size || selection.has(one));
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
