"""Review a collection step by step: a generator asks for items, neighbours and thumbnails, whoever drives it answers.

So one course of a review serves the command, which answers by a client, and the service, which answers by its handlers.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from imagekin.index.review.duplicates import Pairs
from imagekin.index.review.findings import Finding, Gatherer
from imagekin.index.review.opinions import Judge, Vectors
from imagekin.index.review.pictures import Crops, crops
from imagekin.index.review.to_label import Questions
from imagekin.types import Neighbour

# Items, queries and thumbnails of one step.
AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a review.

    Attributes:
        neighbours: how many of each item's vote.
        duplicates: likeness from which two items are near-duplicates; None for 0.95 of pixels, 0.97 of embeddings.
        limit: findings of each kind, at most.
        questions: items to label next, at most.
        items: items to look at, at most; None for all.
        at_once: items, queries and thumbnails of one step.
    """

    neighbours: int = 30
    duplicates: float | None = None
    limit: int = 1_000
    questions: int = 50
    items: int | None = None
    at_once: int = AT_ONCE


@dataclass(frozen=True, slots=True)
class NextItems:
    """Question for so many further items, each its key, label and vector; the answer is empty at the end.

    Attributes:
        count: how many, at most.
        anew: begin with the first again.
    """

    count: int
    anew: bool


@dataclass(frozen=True, slots=True)
class NeighboursOf:
    """Question for the neighbours of items; the answer has None for one that is gone."""

    keys: Sequence[str]
    count: int


@dataclass(frozen=True, slots=True)
class PicturesOf:
    """Question for the thumbnails of items as JPEG; None for one without, None for all."""

    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class Found:
    """Findings of a review.

    Attributes:
        items: how many were looked at.
        complete: whether these were all.
        labels: likely wrong labels, the surest first.
        duplicates: groups of near-duplicates.
        outliers: items like nothing else.
        next: what to label next.
        totals: findings of the first three kinds before the limit.
        by_pixels: pairs of items whose pixels were compared.
        by_embeddings: pairs without two thumbnails, whose embeddings were compared.
    """

    items: int
    complete: bool
    labels: list[Finding]
    duplicates: list[Finding]
    outliers: list[Finding]
    next: list[Finding]
    totals: dict[str, int]
    by_pixels: int
    by_embeddings: int


Items: TypeAlias = Sequence[tuple[str, str, Vectors]]
Near: TypeAlias = Sequence[Sequence[Neighbour] | None]
Question: TypeAlias = NextItems | NeighboursOf | PicturesOf


class Course:
    """The course of one review: `question` is the first; `answer` returns the next, and at last what was found."""

    def __init__(self, options: Options) -> None:
        self._steps = _steps(options)
        self.question: Question = next(self._steps)

    def answer(self, given: Any) -> Question | Found:
        """Take the answer to the last question."""
        try:
            return self._steps.send(given)
        except StopIteration as end:
            found: Found = end.value
            return found


def _steps(options: Options) -> Generator[Question, Any, Found]:
    gatherer, pairs, questions, judge = Gatherer(), Pairs(options.duplicates), Questions(), Judge()
    seen, complete = 0, False
    for learns in (True, False):
        seen, complete = 0, False
        while not complete and (options.items is None or seen < options.items):
            count = options.at_once if options.items is None else min(options.at_once, options.items - seen)
            items: Items = yield NextItems(count, anew=seen == 0)
            seen, complete = seen + len(items), not items
            if not items:
                continue
            if learns:
                judge.learn(np.stack([vector for _, _, vector in items]), [label for _, label, _ in items])
                continue
            near: Near = yield NeighboursOf([key for key, _, _ in items], options.neighbours)
            # An item that was deleted meanwhile needs no review.
            found = [(item, one) for item, one in zip(items, near, strict=True) if one is not None]
            if not found:
                continue
            vectors = np.stack([vector for (_, _, vector), _ in found])
            opinions = judge.opinions(vectors, [label for (_, label, _), _ in found], [one for _, one in found])
            for ((key, label, _), neighbours), opinion in zip(found, opinions, strict=True):
                gatherer.add(key, label, neighbours, opinion)
                pairs.add(key, label, neighbours)
                questions.add(key, label, neighbours, opinion)
    pictures = yield from _pictures(pairs.keys(), options.at_once)
    labels, duplicates, outliers = gatherer.labels(), pairs.findings(pictures), gatherer.outliers()
    return Found(
        items=seen,
        complete=complete,
        labels=labels[: options.limit],
        duplicates=duplicates[: options.limit],
        outliers=outliers[: options.limit],
        next=questions.findings(options.questions),
        totals={"labels": len(labels), "duplicates": len(duplicates), "outliers": len(outliers)},
        by_pixels=pairs.by_pixels,
        by_embeddings=pairs.by_embeddings,
    )


def _pictures(keys: list[str], at_once: int) -> Generator[Question, Any, dict[str, Crops]]:
    """Ask for the thumbnails of items and return their crops by key."""
    held: dict[str, Crops] = {}
    for at in range(0, len(keys), at_once):
        some = keys[at : at + at_once]
        found: Sequence[bytes | None] | None = yield PicturesOf(some)
        if found is None:
            break
        for key, jpeg in zip(some, found, strict=True):
            if jpeg is not None and (made := crops(jpeg)) is not None:
                held[key] = made
    return held
