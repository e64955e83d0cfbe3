// Browse: every item of a collection by its label or another field; select, put right, take away.

import { call, of } from "../api.js";
import { go, toggle } from "../address.js";
import { bar, button, count, field, fill, h, later, notice, plural, told } from "../dom.js";
import { Grid } from "../grid.js";
import { Selection } from "../selection.js";

const PAGE = 500;
const FAR_PAGE = 5_000;
const MOST_FACETS = 500;
const NONE = "\u0000";

export function mount(root, app) {
  let params = new URLSearchParams();
  let asked = null;
  let token = "";
  let loading = null;
  let wanted = 0;
  let running = new AbortController();
  const collection = () => app.collection;
  const grid = new Grid({
    collection, open: (item) => go({ item: item.key }), isSelected: (item) => selection.has(item),
    select: (item, index, { range }) => selection.toggle(grid.items, item, index, range),
    more: (item) => go({ collection: collection(), like: item.key }, { view: "search", fresh: true }),
    need: (index) => {
      wanted = index;
      load();
    },
  });
  const selection = new Selection({ collection, mark: () => grid.mark(), app });

  const filter = h("input", { type: "search", placeholder: 'payload.price < 10 AND NOT label = "shoe"', spellcheck: "false", autocomplete: "off",
    oninput: later(400, () => go({ filter: filter.value }, { replace: true })) });
  const by = h("select", { onchange: () => go({ by: by.value, value: null }) });
  const find = h("input", { type: "search", placeholder: "find a value", "aria-label": "Find a value", oninput: () => listed() });
  const values = h("ul", { class: "values" });
  const facets = h("aside", { class: "facets", "aria-label": "Values" }, field("By", by), find, values);
  const said = h("p", { class: "said", role: "status" });
  const all = button("Select all", () => selectAll(), {});
  const results = h("section", { class: "results", "aria-label": "Items" }, h("div", { class: "controls" }, h("div", { class: "wide" }, field("Filter", filter))),
    h("div", { class: "row spread" }, said, all), grid.element);
  const columns = h("div", { class: "columns" }, facets, results);
  fill(root, columns, selection.bar);
  let counts = [];

  /** Return the filter that the address asks for: its text, and the values that were chosen. */
  function condition() {
    const name = params.get("by") ?? "label";
    const chosen = params.getAll("value");
    const tests = chosen.filter((one) => one !== NONE);
    const either = [];
    if (tests.length) either.push(`${name} IN (${tests.join(", ")})`);
    if (chosen.length > tests.length) either.push(`${name} NOT EXISTS`);
    const text = params.get("filter") ?? "";
    return [text && `(${text})`, either.length && `(${either.join(" OR ")})`].filter(Boolean).join(" AND ") || undefined;
  }

  async function update(now) {
    params = new URLSearchParams(now);
    now.delete("item");
    columns.hidden = !collection();
    if (!collection() || asked === now.toString()) return;
    asked = now.toString();
    if (document.activeElement !== filter) filter.value = params.get("filter") ?? "";
    if (collection() !== selection.of) selection.clear();
    selection.of = collection();
    await reload();
  }

  async function reload({ stay = false } = {}) {
    running.abort();
    const { signal } = (running = new AbortController());
    const [where, name] = [condition(), params.get("by") ?? "label"];
    results.classList.add("busy");
    try {
      const [first, { count: total }, values_, missing] = await Promise.all([
        page("", stay ? Math.max(PAGE, Math.min(10_000, grid.items.length)) : PAGE, signal),
        call("POST", of(collection(), "count"), { json: { filter: where }, signal, read: true }),
        call("POST", of(collection(), "facets"), { json: { field: name, limit: MOST_FACETS, filter: params.get("filter") || undefined }, signal, read: true }),
        call("POST", of(collection(), "count"), { json: { filter: [params.get("filter") && `(${params.get("filter")})`, `${name} NOT EXISTS`].filter(Boolean).join(" AND ") }, signal, read: true }),
      ]);
      token = first.next_page_token;
      counts = values_.counts.map(({ value, count: number }) => ({ value, number, test: JSON.stringify(value) }));
      if (missing.count) counts.push({ value: name === "label" ? "no label" : "without", number: missing.count, test: NONE });
      if (!stay) scrollTo(0, 0);
      grid.set(first.items, token ? total : first.items.length);
      fields(first.items);
      listed();
      fill(said, total ? plural(total, "item") : "");
      all.hidden = !total;
      empty.hidden = total > 0;
    } catch (error) {
      if (error.name === "AbortError") return;
      grid.set([]);
      all.hidden = true;
      fill(said, h("span", { class: "error" }, error.message));
    } finally {
      if (running.signal === signal) results.classList.remove("busy");
    }
  }

  const empty = notice("Nothing is here", "No item matches: take values or the filter away. An empty collection is filled by");
  empty.append(h("pre", {}, "imagekin index NAME photos/ --model model.onnx"));
  empty.hidden = true;
  results.append(empty);

  const page = (from, size, signal) => call("POST", of(collection(), "scroll"), { json: { page_token: from, page_size: size, filter: condition() }, signal, read: true });

  /** Load pages, one after the other, until what the grid wants is there. */
  function load() {
    loading ??= more().finally(() => (loading = null));
    return loading;
  }

  async function more() {
    const { signal } = running;
    while (token && grid.items.length <= wanted) {
      const far = wanted - grid.items.length > PAGE * 2;
      try {
        const next = await page(token, far ? FAR_PAGE : PAGE, signal);
        token = next.next_page_token;
        grid.items.push(...next.items);
        if (!token) grid.total = grid.items.length;
        grid.draw();
      } catch (error) {
        if (error.name !== "AbortError") fill(said, h("span", { class: "error" }, error.message));
        return;
      }
    }
  }

  async function selectAll() {
    wanted = grid.total - 1;
    await load();
    selection.set(grid.items.map((item) => item.key));
  }

  /** Offer the fields of the payload by which items can be counted. */
  function fields(items) {
    const names = new Set(["label"]);
    for (const { payload } of items.slice(0, 200)) {
      for (const [name, value] of Object.entries(payload ?? {})) if (typeof value !== "object") names.add(`payload.${/^[\w-]+$/.test(name) ? name : JSON.stringify(name)}`);
    }
    const chosen = params.get("by") ?? "label";
    names.add(chosen);
    fill(by, [...names].slice(0, 60).map((name) => h("option", { value: name }, name)));
    by.value = chosen;
  }

  function listed() {
    const chosen = new Set(params.getAll("value"));
    const most = Math.max(1, ...counts.map((one) => one.number));
    const text = find.value.toLowerCase();
    fill(values, counts.filter((one) => String(one.value).toLowerCase().includes(text)).map(({ value, number, test }) =>
      h("li", {}, h("button", { type: "button", class: "value", "aria-pressed": String(chosen.has(test)), onclick: () => toggle("value", test, !chosen.has(test)) },
        told(String(value), test === NONE ? { class: "none" } : {}), h("span", { class: "number" }, count(number)), bar(number / most)))));
    find.hidden = counts.length < 12;
  }

  return {
    update, selection, loaded: () => grid.items.filter(Boolean).map((item) => item.key),
    changed: () => reload({ stay: true }),
    focus: () => filter.focus(),
    close: () => (running.abort(), grid.close(), selection.clear()),
  };
}
