"""Exact nearest neighbours from Milvus' flat index: never fewer than k, ties by key.

Milvus proposes somewhat more than asked for; similarities are computed once more, in float64, as the local store does,
so that both answer alike. Where what was proposed does not prove to hold the true k (a tie that goes on), more is asked
for, up to what Milvus answers with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import FailedPreconditionError
from imagekin.index.milvus.connection import MilvusConnection
from imagekin.index.milvus.rows import MOST
from imagekin.index.search.nearest import similarities
from imagekin.index.vectors.brute_force import rounding
from imagekin.types import Vector

_MARGIN = 8
_MORE = 4
_BYTES_AT_ONCE = 32 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """The nearest rows of one query.

    Attributes:
        rows: what was asked for of each, `key` among it; most similar first, ties by key.
        vectors: float32 [m, D], their embeddings.
        similarities: float32 [m].
    """

    rows: list[dict[str, Any]]
    vectors: Vector
    similarities: NDArray[np.float32]

    def part(self, places: Sequence[int]) -> "Hits":
        """Return some of them."""
        wanted = list(places)
        return Hits([self.rows[place] for place in wanted], self.vectors[wanted], self.similarities[wanted])

    def without(self, keys: frozenset[str]) -> "Hits":
        """Return those whose keys are not among `keys`."""
        if not keys:
            return self
        return self.part([place for place, row in enumerate(self.rows) if row["key"] not in keys])


def nearest(
    connection: MilvusConnection, table: str, queries: Vector, k: int, expression: str, columns: Sequence[str]
) -> list[Hits]:
    """Return the `k` nearest rows of each query (float32 [N, D] of unit length) that meet an expression.

    Raises:
        FailedPreconditionError: more rows are equally similar than Milvus can answer with.
    """
    answers: list[Hits | None] = [None] * len(queries)
    open_places, limit = list(range(len(queries))), k + _MARGIN
    while open_places:
        limit = min(limit, MOST)
        step = max(1, _BYTES_AT_ONCE // (limit * queries.shape[1] * 4))
        for begin in range(0, len(open_places), step):
            places = open_places[begin : begin + step]
            found = connection.call(
                "search",
                table,
                data=list(queries[places]),
                anns_field="vector",
                limit=limit,
                filter=expression,
                output_fields=[*columns, "vector"],
                search_params={"metric_type": "IP"},
            )
            for place, hits in zip(places, found, strict=True):
                answers[place] = _settled(queries[place], list(hits), k, limit)
        open_places = [place for place in open_places if answers[place] is None]
        if open_places and limit == MOST:
            raise FailedPreconditionError(
                f"more than {MOST:,} items are equally similar to a query: Milvus answers with no more; delete"
                " duplicates or narrow the search with a filter"
            )
        limit *= _MORE
    return [answer for answer in answers if answer is not None]


def _settled(query: Vector, hits: list[Any], k: int, limit: int) -> Hits | None:
    """Return the k nearest of what was proposed; None where that does not prove to hold them."""
    rows = [{**hit["entity"], "key": hit["key"]} for hit in hits]
    vectors = np.array([row.pop("vector") for row in rows], np.float32).reshape(len(rows), len(query))
    exact = similarities(query[None], vectors[None])[0]
    ranked = sorted(range(len(rows)), key=lambda place: (-exact[place], rows[place]["key"].encode()))[:k]
    if len(hits) == limit:
        # What was not proposed is at most as similar as the last one that was, but for Milvus' rounding.
        bound = min(float(hit["distance"]) for hit in hits) + rounding(len(query))
        if len(ranked) < k or float(exact[ranked[-1]]) <= bound:
            return None
    return Hits(rows, vectors, exact).part(ranked)
