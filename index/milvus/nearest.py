"""Find the exact nearest neighbours with Milvus' flat index: never fewer than k, ties by key.

Milvus proposes more candidates than are wanted. Their similarities are computed again in float64, as in the local
store, so that both give the same results. If the candidates are not proven to contain the true k nearest (because of a
tie), more are requested, up to the limit of Milvus.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import FailedPreconditionError
from imagekin.index.milvus.connection import MilvusConnection
from imagekin.index.milvus.rows import MAX_ROWS
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
        rows: the requested columns of each row, and `key`; most similar first, ties by key.
        vectors: float32 [m, D], the rows' embeddings.
        similarities: float32 [m].
    """

    rows: list[dict[str, Any]]
    vectors: Vector
    similarities: NDArray[np.float32]

    def part(self, places: Sequence[int]) -> "Hits":
        """Return the hits at some places."""
        wanted = list(places)
        return Hits([self.rows[place] for place in wanted], self.vectors[wanted], self.similarities[wanted])

    def without(self, keys: frozenset[str]) -> "Hits":
        """Return the hits whose keys are not among `keys`."""
        if not keys:
            return self
        return self.part([place for place, row in enumerate(self.rows) if row["key"] not in keys])


def nearest(
    connection: MilvusConnection, table: str, queries: Vector, k: int, expression: str, columns: Sequence[str]
) -> list[Hits]:
    """Return the `k` nearest rows of each query (float32 [N, D] of unit length) that meet an expression.

    Raises:
        FailedPreconditionError: more rows are equally similar than Milvus returns.
    """
    answers: list[Hits | None] = [None] * len(queries)
    open_places, limit = list(range(len(queries))), k + _MARGIN
    while open_places:
        limit = min(limit, MAX_ROWS)
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
                answers[place] = _select_top(queries[place], list(hits), k, limit)
        open_places = [place for place in open_places if answers[place] is None]
        if open_places and limit == MAX_ROWS:
            raise FailedPreconditionError(
                f"more than {MAX_ROWS:,} items are equally similar to a query: Milvus answers with no more; delete"
                " duplicates or narrow the search with a filter"
            )
        limit *= _MORE
    return [answer for answer in answers if answer is not None]


def _select_top(query: Vector, hits: list[Any], k: int, limit: int) -> Hits | None:
    """Return the k nearest of the candidates; None if they are not proven to contain them."""
    rows = [{**hit["entity"], "key": hit["key"]} for hit in hits]
    vectors = np.array([row.pop("vector") for row in rows], np.float32).reshape(len(rows), len(query))
    exact = similarities(query[None], vectors[None])[0]
    ranked = sorted(range(len(rows)), key=lambda place: (-exact[place], rows[place]["key"].encode()))[:k]
    if len(hits) == limit:
        # Rows not proposed are at most as similar as the last one proposed, except for Milvus' rounding.
        bound = min(float(hit["distance"]) for hit in hits) + rounding(len(query))
        if len(ranked) < k or float(exact[ranked[-1]]) <= bound:
            return None
    return Hits(rows, vectors, exact).part(ranked)
