// Find what a person should look at, from each item's neighbours: as imagekin review does, see cli/review/findings.py.

const TEMPERATURE = 0.07;
const OUTLYING = 3.5;
const MAD_TO_SIGMA = 0.6745;

/** Take items one by one with their neighbours, and say what was found at the end. */
export class Gatherer {
  #suspects = [];
  #pairs = [];
  #labels = new Map();
  #nearness = [];

  /** Similarity from which two items count as near-duplicates. */
  constructor(duplicates) {
    this.duplicates = duplicates;
  }

  add({ key, label = "" }, neighbours) {
    this.#labels.set(key, label);
    if (!neighbours.length) return;
    const first = neighbours.slice(0, 5);
    this.#nearness.push({ key, label, score: first.reduce((sum, one) => sum + one.similarity, 0) / first.length });
    for (const one of neighbours) if (one.similarity >= this.duplicates) this.#pairs.push([key, one.key, one.similarity]);
    if (!label) return;
    const shares = votes(neighbours);
    const [proposed, share] = [...shares].reduce((best, one) => (one[1] > best[1] || (one[1] === best[1] && one[0] < best[0]) ? one : best), [label, 0]);
    if (proposed !== label) this.#suspects.push({ key, label, proposed, share, score: 1 - (shares.get(label) ?? 0) });
  }

  /** Return the items whose neighbours have another label, the surest first. */
  labels() {
    return this.#suspects.sort((one, other) => other.score - one.score || other.share - one.share || order(one, other));
  }

  /** Return groups of near-duplicates, the most similar group first. */
  nearDuplicates() {
    const best = new Map();
    const parent = new Map();
    const root = (key) => {
      if (!parent.has(key)) parent.set(key, key);
      while (parent.get(key) !== key) key = parent.get(key);
      return key;
    };
    for (const [one, other, similarity] of this.#pairs) {
      for (const key of [one, other]) best.set(key, Math.max(best.get(key) ?? -1, similarity));
      const [low, high] = [root(one), root(other)].sort();
      parent.set(high, low);
    }
    const groups = Map.groupBy([...parent.keys()].sort(), root);
    const most = (group) => Math.max(...group.map((key) => best.get(key)));
    return [...groups.values()].sort((one, other) => most(other) - most(one) || (one[0] < other[0] ? -1 : 1))
      .flatMap((group, at) => group.map((key) => ({ key, label: this.#labels.get(key) ?? "", score: best.get(key), group: at + 1 })));
  }

  /** Return the items that are like nothing else, the most outlying first. */
  outliers() {
    const values = this.#nearness.map((one) => one.score);
    const middle = median(values);
    const deviation = median(values.map((value) => Math.abs(value - middle)));
    const bound = middle - (OUTLYING * deviation) / MAD_TO_SIGMA;
    return deviation ? this.#nearness.filter((one) => one.score < bound).sort((one, other) => one.score - other.score || order(one, other)) : [];
  }
}

const order = (one, other) => (one.key < other.key ? -1 : 1);

function votes(neighbours) {
  const weights = new Map();
  for (const { label, similarity } of neighbours) {
    if (label) weights.set(label, (weights.get(label) ?? 0) + Math.exp((similarity - 1) / TEMPERATURE));
  }
  const total = [...weights.values()].reduce((sum, one) => sum + one, 0);
  return new Map([...weights].map(([label, weight]) => [label, weight / total]));
}

function median(values) {
  const sorted = [...values].sort((one, other) => one - other);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
