"""What can be stored is checked once, and a payload that was is kept as its text."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest

from imagekin.errors import InvalidArgumentError
from imagekin.index.local.catalog import Catalog
from imagekin.index.types import VectorItem
from imagekin.serving.messages import read_payload, write_item
from imagekin.sources.values import CheckedPayload, payload_text
from imagekin.types import JSON, ItemUpdate


def test_a_checked_payload_is_the_mapping_of_its_text() -> None:
    given: dict[str, JSON] = {"a": [1, 2.5, None], "b": {"c": "é"}, "big": 2**80}
    checked = CheckedPayload(payload_text(given) or "")
    assert dict(checked) == given
    assert (len(checked), "a" in checked, checked["b"], bool(checked)) == (3, True, {"c": "é"}, True)
    assert payload_text(checked) is checked.text


def test_a_request_s_payloads_leave_no_objects_behind() -> None:
    text = json.dumps({str(number): [number] for number in range(1_000)})
    gc.collect()
    before = len(gc.get_objects())
    held = [read_payload(text) for _ in range(20)]
    assert len(gc.get_objects()) - before < 1_000
    assert [dict(one or {})["7"] for one in held] == [[7]] * 20


def test_stored_payloads_are_answered_as_text_and_equal_what_was_stored(tmp_path: Path) -> None:
    payload: dict[str, JSON] = {str(number): [number] for number in range(1_000)}
    with Catalog(tmp_path) as catalog:
        shop = catalog.create("shop", space="s", dim=2)
        shop.upsert([VectorItem(f"k{number}", np.eye(2, dtype=np.float32)[0], None, payload) for number in range(20)])
        gc.collect()
        before = len(gc.get_objects())
        found = [item for item in shop.get([f"k{number}" for number in range(20)]) if item is not None]
        texts = [write_item(item, with_vector=False).payload_json for item in found]
        assert len(gc.get_objects()) - before < 1_000
        assert texts == [payload_text(payload)] * 20
        assert [item.payload for item in found] == [payload] * 20
        shop.update([ItemUpdate("k0", label="new")])
        (kept,) = shop.get(["k0"])
        assert kept is not None
        assert (kept.label, kept.payload) == ("new", payload)


@pytest.mark.parametrize(
    "text", ["[1]", '{"a":NaN}', '{"a":1e999}', '{"a":', '{"a":' + "[" * 70 + "]" * 70 + "}", '"' + "x" * 70_000 + '"']
)
def test_what_is_no_payload_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        read_payload(text)


def test_an_empty_payload_is_none() -> None:
    assert read_payload("") is read_payload("{}") is None


@pytest.mark.parametrize("inside", ["1", '"]]]"', '"[[[["', '"\\\\"', '"\\"[["', '{"k[[":[]}', "[],[]"])
def test_payloads_are_nested_64_deep_at_most(inside: str) -> None:
    # Brackets in strings are none.
    many = ",".join('"]\\"["' for _ in range(70))
    deepest = 64 - (2 if inside.startswith("{") else 1 if inside.startswith("[") else 0)
    for depth, fits in ((deepest, True), (deepest + 1, False)):
        text = f'{{"a{"[" * 9}":' + "[" * (depth - 1) + f"{inside},{many}" + "]" * (depth - 1) + "}"
        if fits:
            assert read_payload(text) is not None
        else:
            with pytest.raises(InvalidArgumentError, match="64 deep"):
                read_payload(text)
