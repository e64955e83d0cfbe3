"""Columns hold every point of a history, whatever they were made from."""

from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from imagekin.index.storage.columns import Columns, ColumnSnapshot, short_hash
from imagekin.index.storage.search_priority import SearchPriority

DIM = 2
LABELS = ["red", "blue", "green"]
PRIORITY = SearchPriority()
# A key, and the label that it is written with; "gone" when it is deleted.
HISTORIES = st.lists(st.tuples(st.sampled_from("abcé"), st.sampled_from([None, "gone", *LABELS])), max_size=20)
Contents = dict[str, tuple[str | None, int, list[float]]]


@dataclass
class History:
    """Columns to which all writes of a history were made, and what they should hold after each.

    Attributes:
        columns: the columns.
        contents: of each sequence number from 0 on, the label, the short hash and the vector of each key.
    """

    columns: Columns
    contents: list[Contents]

    @property
    def last(self) -> int:
        """The last sequence number."""
        return len(self.contents) - 1

    def snapshot(self) -> ColumnSnapshot:
        """Return the snapshot of the last sequence number."""
        return self.columns.snapshot(self.last)


def played(writes: list[tuple[str, str | None]], label_names: list[str]) -> History:
    """Return the columns of a history; the labels that are known before have the first codes."""
    columns = Columns(DIM, label_names=label_names)
    written: dict[str, int] = {}
    contents: list[Contents] = [{}]
    for key, label in writes:
        sequence = len(contents)
        now = dict(contents[-1])
        if key in written:
            columns.kill(np.array([written.pop(key)]), np.array([sequence]))
            del now[key]
        if label != "gone":
            vector, content = np.full(DIM, sequence, np.float32), str(sequence).encode()
            columns.append(np.array([sequence]), [key.encode()], [label], [content], vector[None])
            written[key] = sequence
            now[key] = (label, short_hash(content), vector.tolist())
        contents.append(now)
    return History(columns, contents)


def held(snapshot: ColumnSnapshot) -> Contents:
    """Return what a snapshot holds, having checked its counters."""
    slots = np.flatnonzero(snapshot.alive())
    found: Contents = {
        key: (snapshot.label(slot), int(snapshot.hashes[slot]), snapshot.vectors[slot].tolist())
        for key, slot in zip(snapshot.keys(slots), slots.tolist(), strict=True)
    }
    assert len(found) == len(slots) == snapshot.live
    assert snapshot.labelled == sum(label is not None for label, _, _ in found.values())
    return found


@given(writes=HISTORIES)
def test_a_snapshot_holds_every_point_of_its_history(writes: list[tuple[str, str | None]]) -> None:
    history = played(writes, [])
    for sequence, contents in enumerate(history.contents):
        assert held(history.snapshot().at(sequence)) == contents


@given(writes=HISTORIES, data=st.data())
def test_columns_copied_at_any_point_catch_up(writes: list[tuple[str, str | None]], data: st.DataObject) -> None:
    history = played(writes, [])
    since = data.draw(st.integers(0, history.last))
    copied = Columns.of_live(history.snapshot().at(since), PRIORITY)
    assert held(copied.snapshot(since)) == history.contents[since]
    copied.catch_up(history.snapshot(), since, PRIORITY)
    assert held(copied.snapshot(history.last)) == history.contents[-1]


@given(writes=HISTORIES, names=st.permutations(LABELS), data=st.data())
def test_columns_whose_labels_have_other_codes_catch_up(
    writes: list[tuple[str, str | None]], names: list[str], data: st.DataObject
) -> None:
    history = played(writes, LABELS)
    since = data.draw(st.integers(0, history.last))
    other = played(writes[:since], names)
    other.columns.catch_up(history.snapshot(), since, PRIORITY)
    assert held(other.columns.snapshot(history.last)) == history.contents[-1]


@given(keys=st.lists(st.integers(1, 3000), min_size=1, max_size=4))
def test_one_write_may_hold_more_items_than_all_before_it(keys: list[int]) -> None:
    columns = Columns(DIM)
    total = 0
    for count in keys:
        names = [f"{total + number}".encode() for number in range(count)]
        sequences = np.arange(total + 1, total + count + 1)
        columns.append(sequences, names, [None] * count, [None] * count, np.zeros((count, DIM), np.float32))
        total += count
    snapshot = columns.snapshot(total)
    assert snapshot.keys(np.arange(total)) == [str(number) for number in range(total)]
