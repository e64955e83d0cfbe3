// Search: by pictures, by keys, by more and less of both; what is alike, and what it therefore is.

import { call, of } from "../api.js";
import { go, toggle } from "../address.js";
import { bar, button, field, fill, h, later, notice, percent, plural, told } from "../dom.js";
import { Grid } from "../grid.js";
import { embedding, hold, picture } from "../pictures.js";
import { Selection } from "../selection.js";
import { thumbnail } from "../thumbnails.js";

const COUNTS = [12, 24, 48, 96, 200];
const DEFAULT_COUNT = "24";
const METHODS = { knn: "votes of neighbours", prototype: "nearest class", linear: "linear head" };

export function mount(root, app) {
  let params = new URLSearchParams();
  let running = new AbortController();
  const collection = () => app.collection;
  const grid = new Grid({
    collection, open: (item) => go({ item: item.key }), isSelected: (item) => selection.has(item),
    select: (item, index, { range }) => selection.toggle(grid.items, item, index, range),
    more: (item) => like(item.key), less: (item) => unlike(item.key),
  });
  const selection = new Selection({ collection, mark: () => grid.mark(), app });

  const chooser = h("input", { type: "file", accept: "image/*", multiple: true, class: "unseen", tabindex: -1, "aria-label": "Pictures",
    onchange: () => (show(chooser.files), (chooser.value = "")) });
  const key = h("input", { type: "search", placeholder: "key of an item", "aria-label": "Key of an item", autocomplete: "off", spellcheck: "false" });
  const asking = h("form", { class: "asking", onsubmit: (event) => (event.preventDefault(), key.value && ask({ like: key.value })) },
    button("Choose a picture", () => chooser.click(), { drawing: "picture", withText: true, kind: "primary" }), chooser,
    h("span", { class: "or" }, "drop or paste one anywhere, or"), key, h("button", { class: "button", type: "submit" }, "Search"));
  const most = h("select", { onchange: () => go({ k: most.value }) }, COUNTS.map((one) => h("option", { value: one }, one)));
  const method = h("select", { onchange: () => go({ method: method.value }) }, Object.entries(METHODS).map(([value, text]) => h("option", { value }, text)));
  const least = h("input", { type: "range", min: 0, max: 1, step: 0.01, oninput: () => (named(), changedLeast()) });
  const leastShown = h("output", {});
  const filter = h("input", { type: "search", placeholder: 'label = "shoe" AND payload.price < 10', spellcheck: "false", autocomplete: "off", oninput: later(400, () => go({ filter: filter.value }, { replace: true })) });
  const controls = h("div", { class: "controls" }, field("Results", most),
    field(h("span", {}, "Similarity at least ", leastShown), least), h("div", { class: "wide" }, field("Filter", filter)), field("Class by", method));
  const query = h("aside", { class: "query", "aria-label": "Query" });
  const said = h("p", { class: "said", role: "status" });
  const results = h("section", { class: "results", "aria-label": "Results" }, controls, said, grid.element);
  const columns = h("div", { class: "columns" }, query, results);
  const empty = h("div", { class: "drop", onclick: () => chooser.click() }, h("div", { class: "mark", "aria-hidden": "true" }),
    h("h2", {}, "Drop a picture, see what is alike"),
    h("p", {}, "Or paste one, choose one, or take any item of the collection as the question: its neighbours come with how similar they are, and what it therefore is."));
  fill(root, asking, empty, columns, selection.bar);

  const changedLeast = later(150, () => go({ least: Number(least.value) ? least.value : null }, { replace: true }));
  const named = () => (leastShown.textContent = Number(least.value).toFixed(2));
  const show = (files) => files.length && ask({ picture: hold(files) });
  const ask = (asked) => {
    const kept = Object.fromEntries(["k", "filter", "least", "method"].map((name) => [name, params.get(name)]));
    go({ collection: collection(), ...kept, ...asked }, { view: "search", fresh: true });
    scrollTo(0, 0);
  };
  const like = (one) => go({ like: [...new Set([...params.getAll("like"), one])], unlike: params.getAll("unlike").filter((other) => other !== one) });
  const unlike = (one) => {
    if (!params.has("like") && !params.has("picture")) return;
    go({ unlike: [...new Set([...params.getAll("unlike"), one])], like: params.getAll("like").filter((other) => other !== one) });
  };

  async function update(now) {
    const asked = now.toString();
    const before = new URLSearchParams(params);
    params = new URLSearchParams(now);
    [before, now].forEach((one) => one.delete("item"));
    // Opening an item over the results asks nothing anew.
    if (before.toString() === now.toString() && asked && grid.total) return;
    controlsFrom(params);
    if (collection() !== selection.of) selection.clear();
    selection.of = collection();
    await run();
  }

  function controlsFrom(now) {
    most.value = now.get("k") ?? DEFAULT_COUNT;
    least.value = now.get("least") ?? 0;
    named();
    if (document.activeElement !== filter) filter.value = now.get("filter") ?? "";
    const classes = app.modelOf(collection())?.class_names?.length;
    method.querySelector("[value=linear]").disabled = !classes;
    method.value = now.get("method") ?? "knn";
  }

  async function run() {
    running.abort();
    const { signal } = (running = new AbortController());
    const parts = { pictures: params.getAll("picture"), like: params.getAll("like"), unlike: params.getAll("unlike") };
    const any = parts.pictures.length + parts.like.length > 0;
    empty.hidden = any || !collection();
    columns.hidden = !any;
    asking.hidden = !collection();
    if (!any) return grid.set([]);
    const prediction = h("div", { class: "prediction", role: "status" });
    fill(query, chips(parts), prediction);
    const lost = parts.pictures.some((id) => !picture(id));
    if (lost) {
      grid.set([]);
      fill(said);
      return fill(prediction, notice("This picture is no longer here", "Pictures are kept by the open page alone, and it was loaded anew. Drop the picture again."));
    }
    results.classList.add("busy");
    try {
      const asked = await question(parts, signal);
      await Promise.all([search(asked, signal), classify(asked, parts, prediction, signal)]);
    } catch (error) {
      if (error.name === "AbortError") return;
      grid.set([]);
      fill(said, h("span", { class: "error" }, error.message));
    } finally {
      if (running.signal === signal) results.classList.remove("busy");
    }
  }

  /** Return the query: a picture's embedding is made once, and serves for every filter and threshold. */
  async function question({ pictures, like, unlike }, signal) {
    const model = app.modelOf(collection());
    if (pictures.length && !model) throw new Error("the server has no model that made this collection: search by key, or start the server with its model");
    const vectors = await Promise.all(pictures.map((id) => embedding(id, model.name)));
    signal.throwIfAborted();
    if (vectors.length + like.length + unlike.length === 1) return vectors.length ? { vector: vectors[0] } : { key: like[0] };
    return { examples: { positive_keys: like, positive_vectors: vectors, negative_keys: unlike } };
  }

  async function search(asked, signal) {
    const json = { queries: [asked], k: Number(params.get("k") ?? DEFAULT_COUNT), with_payload: false };
    if (params.get("filter")) json.filter = params.get("filter");
    if (params.get("least")) json.min_similarity = Number(params.get("least"));
    const started = performance.now();
    const { results: [result] } = await call("POST", of(collection(), "search"), { json, signal, read: true });
    if (result.error) throw new Error(result.error.message);
    const found = result.neighbours;
    grid.current = 0;
    grid.set(found);
    const took = Math.round(performance.now() - started);
    fill(said, found.length ? `${plural(found.length, "neighbour")} in ${took} ms, similarity ${found.at(-1).similarity.toFixed(3)} to ${found[0].similarity.toFixed(3)}`
      : "Nothing is so similar: lower the threshold, or change the filter.");
  }

  async function classify(asked, { pictures, like, unlike }, shown, signal) {
    const chosen = params.get("method") ?? "knn";
    const options = { method: chosen };
    if (params.get("least") && chosen !== "linear") options.min_similarity = Number(params.get("least"));
    try {
      let answer;
      if (chosen === "linear") {
        if (pictures.length !== 1 || like.length + unlike.length) throw new Error("the linear head answers for one picture");
        answer = await call("POST", of(collection(), "classify"), { params: options, body: picture(pictures[0]).file, type: picture(pictures[0]).file.type, signal, read: true });
      } else answer = await call("POST", of(collection(), "classify"), { json: { queries: [asked], ...options }, signal, read: true });
      const { prediction, error } = answer.results[0];
      fill(shown, prediction ? verdict(prediction) : h("p", { class: "error" }, error.message));
    } catch (error) {
      if (error.name !== "AbortError") fill(shown, h("p", { class: "error" }, error.message));
    }
  }

  function verdict({ label, confidence, nearest_similarity: nearest, votes }) {
    const name = label ? told(label, { class: "verdict" }) : h("span", { class: "verdict unknown" }, "unknown");
    const why = label ? `confidence ${percent(confidence)}` : votes.length ? "nothing known is so similar" : "no item has a label yet: set labels in Browse";
    return [h("h2", {}, name), h("p", { class: "why" }, why, votes.length > 0 && `, nearest ${nearest.toFixed(3)}`),
      h("ul", { class: "votes" }, votes.slice(0, 6).map((vote) => h("li", {}, told(vote.label), bar(vote.share), h("span", { class: "number" }, percent(vote.share)))))];
  }

  function chips({ pictures, like, unlike }) {
    const chip = (name, value, shown, text) => h("li", { class: `chip ${name}` }, shown,
      h("span", { class: "what" }, name === "unlike" ? "less like" : name === "like" ? "like" : "picture", " ", told(text)),
      button(`Remove ${text}`, () => toggle(name, value, false), { drawing: "close", kind: "small" }));
    return h("ul", { class: "chips" },
      pictures.map((id) => chip("picture", id, h("span", { class: "picture" }, picture(id) && h("img", { src: picture(id).url, alt: "" })), picture(id)?.file.name || "pasted")),
      like.map((one) => chip("like", one, thumbnail(collection(), { key: one }), one)),
      unlike.map((one) => chip("unlike", one, thumbnail(collection(), { key: one }), one)));
  }

  return {
    update, selection, loaded: () => grid.items.filter(Boolean).map((item) => item.key), show,
    changed: ({ keys, labels, deleted, undone }) => {
      if (deleted) grid.set(grid.items.filter((item) => !keys.has(item.key)));
      else if (undone) run();
      else {
        grid.items = grid.items.map((item) => (keys.has(item.key) ? { ...item, label: labels.get(item.key) } : item));
        grid.draw();
      }
    },
    focus: () => key.focus(),
    close: () => (running.abort(), grid.close(), selection.clear()),
  };
}
