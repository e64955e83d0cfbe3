"""`imagekin review` on a folder: the table, what is decided in it, and taking it back."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagekin import Client, Item
from imagekin.cli.review.decisions import COLUMNS, read_table, read_undo
from imagekin.errors import InvalidArgumentError, NotFoundError
from tests.e2e.processes import run

WRONG = 'odd, "key"\u202e/é'


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: cats and dogs in two directions, one dog called a cat, and a twin."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)

    def around(axis: int) -> list[float]:
        vector = random.normal(0, 0.1, 16)
        vector[axis] += 1
        return [float(value) for value in vector]

    items = [
        Item(f"{label}{n}", vector=around(axis), label=label)
        for axis, label in enumerate(("cat", "dog"))
        for n in range(12)
    ]
    items.append(
        Item(WRONG, vector=around(1), label="cat", payload={"n": 12345678901234567890}, content_hash=b"h" * 32)
    )
    items.append(Item("twin", vector=items[0].vector, label="cat", content_hash=b"t" * 32, thumbnail=jpeg()))
    with Client.local(folder) as client:
        client.create_collection("pets", space="test", dim=16, thumbnail_size=32)
        client.upsert("pets", items)
    return folder


@pytest.fixture
def table(filled: Path, tmp_path: Path) -> Path:
    path = tmp_path / "review.csv"
    done = run("review", "pets", "--data-dir", str(filled), "--out", str(path), "--duplicates", "0.9999", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["items"], said["labels"], said["duplicates"], said["written"]) == (26, 1, 2, str(path))
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def decide(path: Path, decisions: dict[str, str]) -> None:
    changed = [{**row, "decision": decisions.get(row["key"], "")} for row in rows(path)]
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(changed)


def test_decisions_are_applied_and_taken_back(filled: Path, table: Path) -> None:
    assert [(one["kind"], one["key"], one["proposed"]) for one in rows(table)[:3]] == [
        ("label", WRONG, "dog"),
        ("duplicate", "cat0", ""),
        ("duplicate", "twin", ""),
    ]
    decide(table, {WRONG: "relabel", "cat0": "keep first"})
    place = ("--data-dir", str(filled), "--json")
    done = run("review", "pets", "--apply", str(table), *place)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["relabelled"], said["deleted"]) == (1, 1)
    with Client.local(filled, read_only=True) as client:
        assert [item and item.label for item in client.get("pets", [WRONG, "twin"])] == ["dog", None]
    # The table is about items that are no longer so, and the undo file is the only copy of the twin.
    again = run("review", "pets", "--apply", str(table), *place)
    assert json.loads(again.stdout.splitlines()[-1])["changed_meanwhile_and_left_alone"] == 2
    done = run("review", "pets", "--undo", said["undo"], *place)
    assert json.loads(done.stdout.splitlines()[-1])["labels_restored"] == 1
    with Client.local(filled, read_only=True) as client:
        restored = client.get("pets", [WRONG, "twin", "cat0"], with_vector=True)
        (picture,) = client.thumbnails("pets", ["twin"])
    assert picture is not None
    assert picture.content_hash == b"t" * 32
    assert [item and item.label for item in restored] == ["cat", "cat", "cat"]
    vectors = [item.vector for item in restored if item is not None and item.vector is not None]
    again = run("review", "pets", "--apply", str(table), *place)
    said = json.loads(again.stdout.splitlines()[-1])
    assert (said["relabelled"], said["undo"]) == (1, f"{table}.undo-2.jsonl"), "the first undo file stays"
    np.testing.assert_allclose(vectors[1], vectors[2], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "needs the columns"),
        ("decision,kind,key,label,proposed,group\nburn,label,k,,x,\n", "line 2: no decision 'burn'"),
        ("decision,kind,key,label,proposed,group\nrelabel,label,k,,,\n", "line 2: write the new label"),
        ("decision,kind,key,label,proposed,group\ndelete,label,,,,\n", "line 2: the key is missing"),
        ("decision,kind,key,label,proposed,group\nkeep first,label,k,,,\n", "line 2: only a group"),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=said):
        read_table(path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_may_have_the_separators_of_any_spreadsheet(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "table.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter=separator, restval="")
        writer.writeheader()
        writer.writerow({"decision": "relabel", "key": "a;b,c\td", "label": "cat, big", "proposed": "dog; small"})
    changes = read_table(path)
    assert (changes.labels, changes.expected) == ({"a;b,c\td": "dog; small"}, {"a;b,c\td": "cat, big"})


def test_an_undo_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        read_undo(tmp_path / "undo.jsonl", "pets")
