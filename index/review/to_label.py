"""Choose what to label next: unlabelled items whose label is uncertain, and no two that are neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass

from imagekin.index.review.findings import Finding, nearness
from imagekin.index.review.opinions import Opinion
from imagekin.types import Neighbour

# A label settles its item's nearest neighbours, too: none of them is asked about in the same list.
_SETTLED = 10


@dataclass(frozen=True, slots=True)
class _Question:
    finding: Finding
    typical: float
    settled: tuple[str, ...]


class Questions:
    """Take items one by one with their neighbours, and choose at the end which labels would tell the most.

    An item's uncertainty is 1 minus the margin between its two likeliest labels (Scheffer 2001); where nothing is known
    it is 1. Of equally uncertain items, those in the densest places come first, since
    a first label in the midst of many items tells more than one at the edge (Hacohen 2022).
    """

    def __init__(self) -> None:
        self._asked: list[_Question] = []

    def add(self, key: str, label: str, neighbours: Sequence[Neighbour], opinion: Opinion) -> None:
        """Take an item; its neighbours are without itself, most similar first. One with a label is no question."""
        if label:
            return
        nearest = neighbours[0].key if neighbours else ""
        finding = Finding("next", key, "", opinion.proposed, 1 - opinion.margin, 0, nearest)
        typical = nearness(neighbours) if neighbours else -1.0
        self._asked.append(_Question(finding, typical, tuple(one.key for one in neighbours[:_SETTLED])))

    def findings(self, most: int) -> list[Finding]:
        """Return the items to label first, the most telling first.

        The rest, which the first ones may settle, follows where there are too few of them.
        """
        ranked = sorted(self._asked, key=lambda one: (-round(one.finding.score, 6), -one.typical, one.finding.key))
        settled: set[str] = set()
        first: list[Finding] = []
        later: list[Finding] = []
        for one in ranked:
            if len(first) == most:
                break
            if one.finding.key in settled:
                later.append(one.finding)
                continue
            first.append(one.finding)
            settled.update((one.finding.key, *one.settled))
        return [*first, *later[: most - len(first)]]
