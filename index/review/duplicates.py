"""Group near-duplicates: collect pairs that neighbours suggest, judge them by pixels or embeddings, join them."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from imagekin.index.review.findings import Finding
from imagekin.index.review.pictures import Crops, likeness
from imagekin.types import Neighbour

# Of 200 planted copies among 2,936 photos of groceries all are neighbours of at least this similarity.
_CANDIDATES = 0.88
BY_PIXELS = 0.95
BY_EMBEDDINGS = 0.97
_PAIRS_AT_ONCE = 4_096


class Pairs:
    """Collect pairs of items that may be near-duplicates: 12 bytes a pair, and a number for each key.

    Args:
        bound: likeness from which two items are near-duplicates, None for what fits pixels and embeddings.
    """

    def __init__(self, bound: float | None) -> None:
        self._by_pixels = BY_PIXELS if bound is None else bound
        self._by_embeddings = BY_EMBEDDINGS if bound is None else bound
        self._least = min(_CANDIDATES, self._by_embeddings)
        self._numbers: dict[str, int] = {}
        self._labels: dict[int, str] = {}
        self._ends = array("I")
        self._similarities = array("f")
        self.by_pixels = 0
        self.by_embeddings = 0

    def add(self, key: str, label: str, neighbours: Sequence[Neighbour]) -> None:
        """Take an item with its neighbours."""
        for one in neighbours:
            if one.similarity < self._least:
                break
            ends = sorted((self._number(key, label), self._number(one.key, one.label or "")))
            self._ends.extend(ends)
            self._similarities.append(one.similarity)

    def keys(self) -> list[str]:
        """Return the keys of all items in pairs."""
        return list(self._numbers)

    def findings(self, pictures: dict[str, Crops]) -> list[Finding]:
        """Return the groups of near-duplicates, those of the most like items first.

        Args:
            pictures: crops of the items that have a picture. A pair of two such is judged by their pixels, another by
                the similarity of its embeddings.
        """
        names = list(self._numbers)
        judged = [(names[one], names[other], score) for one, other, score in self._judged(pictures)]
        best: dict[str, tuple[float, str]] = {}
        for one, other, score in judged:
            for key, partner in ((one, other), (other, one)):
                best[key] = max(best.get(key, (-1.0, "")), (score, partner))
        groups = connected((one, other) for one, other, _ in judged)
        groups.sort(key=lambda group: (-max(best[key][0] for key in group), group[0]))
        return [
            Finding("duplicate", key, self._labels[self._numbers[key]], "", best[key][0], number, best[key][1])
            for number, group in enumerate(groups, 1)
            for key in group
        ]

    def _number(self, key: str, label: str) -> int:
        number = self._numbers.setdefault(key, len(self._numbers))
        self._labels[number] = label
        return number

    def _judged(self, pictures: dict[str, Crops]) -> Iterator[tuple[int, int, float]]:
        """Yield the pairs that are near-duplicates, each once, as the numbers of the two and their likeness."""
        ends, places = np.unique(np.array(self._ends, np.uint32).reshape(-1, 2), axis=0, return_index=True)
        similarities = np.array(self._similarities, np.float32)[places]
        held = [pictures.get(key) for key in self._numbers]
        for at in range(0, len(ends), _PAIRS_AT_ONCE):
            seen: list[tuple[int, int]] = []
            ones: list[Crops] = []
            others: list[Crops] = []
            for (one, other), similarity in zip(
                ends[at : at + _PAIRS_AT_ONCE].tolist(), similarities[at:], strict=False
            ):
                first, second = held[one], held[other]
                if first is not None and second is not None:
                    seen.append((one, other))
                    ones.append(first)
                    others.append(second)
                    continue
                self.by_embeddings += 1
                if similarity >= self._by_embeddings:
                    yield one, other, float(similarity)
            self.by_pixels += len(seen)
            alike = likeness(ones, others)
            for (one, other), score in zip(seen, alike.tolist(), strict=True):
                if score >= self._by_pixels:
                    yield one, other, score


def connected(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return the connected groups of what the pairs name, each sorted."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in sorted(parent):
        groups[root(key)].append(key)
    return list(groups.values())
