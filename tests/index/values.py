"""Compares what random conditions mean to every part that evaluates them.

    python -m tests.index.values --conditions 24000 [--seed 0]

The same hostile items (texts with NUL, true beside 1, -0.0 beside 0, integers beyond 64 bits) are stored in a folder
and in Milvus' embedded engine. Each condition must select the same of them by its meaning (`matches`), by SQL in the
database, by the columns in memory, after the way through gRPC as a message and as a text, and by Milvus. What Milvus
cannot evaluate exactly it must refuse, and no other; that is counted.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from imagekin.errors import InvalidArgumentError
from imagekin.index.filters.conditions import (
    AllOf,
    Comparison,
    Condition,
    Not,
    matches,
)
from imagekin.index.filters.parser import to_text
from imagekin.index.filters.sql import matching_rows
from imagekin.index.interface import KeptCollection
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.open import open_collections
from imagekin.index.types import VectorItem
from imagekin.serving.searching.filters import _OPERATORS, read_filter, write_value
from imagekin.v1 import common_pb2
from tests.index.conditions import conditions

DIM = 4
_NUMBERS = {operator: number for number, operator in _OPERATORS.items()}
_HOSTILE: list[Any] = [
    *("", "a", "ab", "10", "true", "é", "z\U0010ffff", "\U0010ffff", "'", '"', "%_", "x\0y", "x", "\0"),
    *(-1, 0, 1, 10, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 + 1, 10**30, -(10**30)),
    *(0.0, -0.0, 0.1, 10.0, 1e-3, 2.0**53, 9.3e18, 1.5, True, False, None, [], [1], ["a"], {}, {"a": 1}, {"b": "a"}),
]
_NAMES = ["a", "b", "price", "in", "7", "ä", "a b", 'q"', "\\", "$", "a.b", "", "x\u0001", "'; --", "[0]"]
_LABELS = [None, "a", "ab", "é", "10", "'"]


def items() -> list[VectorItem]:
    """Return the items that conditions are tried on: every hostile value under every name, and some mixtures."""
    random = np.random.default_rng(0)
    payloads: list[dict[str, Any] | None] = [None, {}]
    for place, value in enumerate(_HOSTILE):
        names = [_NAMES[(place + step) % len(_NAMES)] for step in (0, 4, 9)]
        payloads += [{name: value} for name in ("a", "b", *names)]
        payloads += [{names[0]: {names[1]: value, "a": _HOSTILE[int(random.integers(len(_HOSTILE)))]}}]
    keys = ["k0", "a", "ab", "é", "10", "'; DROP TABLE item; --", "\U0010ffff"]
    keys += [f"k{n:03}" for n in range(len(keys), len(payloads))]
    one = np.ones(DIM, np.float32)
    return [
        VectorItem(key, one, _LABELS[place % len(_LABELS)], payload)
        for place, (key, payload) in enumerate(zip(keys, payloads, strict=True))
    ]


def as_message(condition: Condition) -> common_pb2.Condition:
    """Return a condition as a client sends it."""
    if isinstance(condition, Comparison):
        values = [write_value(value) for value in condition.values]
        number = _NUMBERS[condition.operator]
        comparison = common_pb2.Comparison(field=condition.field, operator=number, values=values)
        return common_pb2.Condition(comparison=comparison)
    if isinstance(condition, Not):
        message = common_pb2.Condition()
        getattr(message, "not").CopyFrom(as_message(condition.part))  # a word of Python
        return message
    parts = common_pb2.Conditions(parts=[as_message(part) for part in condition.parts])
    return common_pb2.Condition(all=parts) if isinstance(condition, AllOf) else common_pb2.Condition(any=parts)


def over_the_wire(condition: Condition) -> list[Condition]:
    """Return what a server reads of a condition that came as a message, and as a text where it has that form."""
    sent = [common_pb2.Filter(condition=as_message(condition))]
    if _has_text(condition):
        sent.append(common_pb2.Filter(text=to_text(condition)))
    return [read_filter(common_pb2.Filter.FromString(one.SerializeToString())) for one in sent]


def _has_text(condition: Condition) -> bool:
    if isinstance(condition, Comparison):
        return True
    if isinstance(condition, Not):
        return _has_text(condition.part)
    # The text of a group of one part is that of the part.
    return len(condition.parts) > 1 and all(map(_has_text, condition.parts))


class Evaluators:
    """All that evaluate conditions, over the same items.

    Args:
        local: a collection in a folder.
        milvus: one in Milvus; None without it.
    """

    def __init__(self, local: LocalCollection, milvus: KeptCollection | None) -> None:
        self.local = local
        self.milvus = milvus
        self.seen: Counter[str] = Counter()
        self.stored = list(local.items())
        assert len(self.stored) > 200

    def compare(self, condition: Condition) -> None:
        """Raise AssertionError where one of them does not select what the condition means."""
        self.seen["conditions"] += 1
        # By their text, in which true, 1 and 1.0 are three values.
        for one in {repr(one): one for one in over_the_wire(condition)}.values():
            self._compare(one)

    def _compare(self, condition: Condition) -> None:
        right = [one.key for one in self.stored if matches(condition, one.key, one.label, one.payload)]
        with self.local._selected(condition) as (_, connection, snapshot, mask):
            assert snapshot.keys(np.flatnonzero(mask)) == right, "memory"
            # In the order of keys where SQLite uses their index.
            assert sorted(key for _, key in matching_rows(connection, condition, "c")) == sorted(right), "SQL"
        self.seen["selected"] += len(right)
        if self.milvus is None:
            return
        try:
            found = sorted(one.key for one in self.milvus.scroll(0, 10_000, condition))
        except InvalidArgumentError as error:
            assert "exactly" in str(error) or "control" in str(error) or "last character" in str(error), error  # noqa: PT017
            self.seen["refused by Milvus"] += 1
            return
        assert found == sorted(right), "Milvus"
        self.seen["compared with Milvus"] += 1


@contextlib.contextmanager
def evaluators(folder: Path, *, milvus: bool) -> Iterator[Evaluators]:
    """Store the items and yield what evaluates conditions over them."""
    with contextlib.ExitStack() as stack:
        local = stack.enter_context(Catalog(folder / "local")).create("shop", space="ik1-a", dim=DIM)
        local.upsert(items())
        other = None
        if milvus:
            store = stack.enter_context(open_collections(f"milvus-lite://{folder}/test.db"))
            other = store.create("shop", space="ik1-a", dim=DIM)
            other.upsert(items())
        yield Evaluators(local, other)


def run(places: Evaluators, count: int, start: int) -> None:
    """Compare `count` random conditions; raises AssertionError with the smallest one that differs."""

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(conditions())
    def law(condition: Condition) -> None:
        places.compare(condition)

    law()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Compare what random conditions mean to all that evaluate them.")
    parser.add_argument("--conditions", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-milvus", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        evaluators(Path(folder), milvus=not options.without_milvus) as places,
    ):
        run(places, options.conditions, options.seed)
        print(json.dumps({"values": dict(places.seen), "differences": 0, "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main()
