"""Maps: a seed gives one map, items keep their place and new ones get one, and a killed run goes on."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imagekin.errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.maps import neighbours, saved
from imagekin.index.maps.settings import MapSettings
from imagekin.index.maps.views import OTHER, MapView
from imagekin.index.types import VectorItem
from imagekin.types import ItemUpdate

GROUPS, EACH, DIM = 4, 30, 8


def vector(group: int, number: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """Return one of a group of vectors that lie around a corner of their own."""
    random = np.random.default_rng(group * 10_000 + number)
    return np.asarray(np.eye(DIM)[group] * 3 + random.normal(0, 0.2, DIM), np.float32)


def item(group: int, number: int) -> VectorItem:
    return VectorItem(
        f"g{group}/{number}",
        vector(group, number),
        label=f"group {group}",
        payload={"n": number % 3, "even": not number % 2},
    )


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog(tmp_path) as catalog:
        yield catalog


@pytest.fixture
def groups(catalog: Catalog) -> LocalCollection:
    """A collection of four groups of vectors."""
    made = catalog.create("groups", space="s", dim=DIM)
    made.upsert([item(group, number) for number in range(EACH) for group in range(GROUPS)])
    return made


def make(collection: LocalCollection, anew: bool = False, **settings: int) -> tuple[int, int, int]:
    report = collection.make_map(MapSettings(**settings), anew=anew, advance=lambda count: None)
    return report.items, report.laid_out, report.placed


def seen(collection: LocalCollection, field: str = "label") -> MapView:
    found = collection.map(field)
    assert found is not None
    return found


def places(collection: LocalCollection) -> dict[str, tuple[int, int]]:
    """Return the position of each key."""
    view = seen(collection)
    keys = collection.map_keys(view.version, range(len(view.codes)))
    return dict(zip(keys, map(tuple, view.positions.tolist()), strict=True))


def middle(found: dict[str, tuple[int, int]], group: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return np.median([place for key, place in found.items() if key.startswith(f"g{group}/")], axis=0)


def nearest_group(found: dict[str, tuple[int, int]], place: tuple[int, int]) -> int:
    return int(np.argmin([np.linalg.norm(middle(found, group) - place) for group in range(GROUPS)]))


def test_the_alike_lie_together_and_a_seed_gives_one_map(groups: LocalCollection) -> None:
    assert make(groups, seed=7) == (GROUPS * EACH, GROUPS * EACH, 0)
    first = places(groups)
    assert all(nearest_group(first, place) == int(key[1]) for key, place in first.items())
    assert make(groups, seed=7, anew=True) == (GROUPS * EACH, GROUPS * EACH, 0)
    assert places(groups) == first
    make(groups, seed=8, anew=True)
    assert places(groups) != first


def test_what_is_written_later_gets_a_place_and_what_was_there_keeps_its_own(groups: LocalCollection) -> None:
    make(groups)
    before = places(groups)
    groups.upsert([item(2, 1000), item(2, 5)])
    groups.update([ItemUpdate("g1/3", label="another")])
    groups.delete(["g0/0"])
    (located,) = groups.locate(vector(2, 1001)[None], [None]).tolist()
    after = places(groups)
    assert {key: place for key, place in after.items() if key != "g2/1000"} == {
        key: place for key, place in before.items() if key != "g0/0"
    }
    assert nearest_group(before, after["g2/1000"]) == 2
    assert nearest_group(before, located) == 2
    assert groups.locate(vector(2, 1000)[None], ["g1/3"]).tolist() == [list(before["g1/3"])]
    assert make(groups) == (GROUPS * EACH, 0, 1)
    kept = places(groups)
    assert {key: kept[key] for key in before.keys() - {"g0/0"}} == {
        key: before[key] for key in before.keys() - {"g0/0"}
    }
    # Another picture under the same key belongs elsewhere.
    groups.upsert([replace(item(2, 5), vector=vector(3, 5))])
    assert nearest_group(before, places(groups)["g2/5"]) == 3


def test_above_the_landmarks_items_are_placed_by_their_neighbours(groups: LocalCollection) -> None:
    groups.upsert([item(group, number) for number in range(EACH, 2 * EACH) for group in range(GROUPS)])
    assert make(groups, landmarks=100) == (240, 100, 140)
    found = places(groups)
    right = sum(nearest_group(found, place) == int(key[1]) for key, place in found.items())
    assert right >= 0.98 * len(found)


def test_a_view_tells_values_apart_and_is_named(groups: LocalCollection) -> None:
    make(groups)
    view = seen(groups)
    assert [(one.value, one.count) for one in view.values] == [(f"group {group}", EACH) for group in range(GROUPS)]
    assert np.bincount(view.codes).tolist() == [0, EACH, EACH, EACH, EACH]
    assert view.unplaced == 0
    assert groups.map("label", view.version) is None
    assert sorted((one.value, one.count) for one in seen(groups, "payload.n").values) == [(0, 40), (1, 40), (2, 40)]
    assert {one.value for one in seen(groups, "payload.even").values} == {True, False}
    groups.upsert([VectorItem(f"x{number}", vector(0, 0), payload={"n": f"v{number}"}) for number in range(300)])
    many = seen(groups, "payload.n")
    assert len(many.values) == 254
    assert (int((many.codes == OTHER).sum()), int((many.codes == 0).sum())) == (303 - 254, 0)
    # Each call places some of what is new.
    assert many.unplaced == 100
    assert groups.map("label", many.version) is not None
    assert seen(groups).unplaced == 0
    with pytest.raises(InvalidArgumentError, match="keys are unique"):
        groups.map("key")


def test_numbers_name_items_until_the_collection_is_another_one(groups: LocalCollection, catalog: Catalog) -> None:
    make(groups)
    version = seen(groups).version
    groups.delete(["g0/0"])
    assert groups.map_keys(version, [1, 0]) == ["g1/0", "g0/0"]
    for wrong, numbers in (("nonsense", [0]), (version, [GROUPS * EACH]), (version + "0" * 20, [0])):
        with pytest.raises(InvalidArgumentError):
            groups.map_keys(wrong, numbers)
    for stale in (f"another:{version.partition(':')[2]}", version.replace(f":{GROUPS * EACH}:", ":999999:")):
        with pytest.raises(FailedPreconditionError, match="get its map again"):
            groups.map_keys(stale, [0])
    catalog.compact("groups")
    with pytest.raises(FailedPreconditionError, match="get its map again"):
        catalog.open("groups").map_keys(version, [0])


def test_it_goes_with_snapshots_and_leaves_with_the_collection(
    groups: LocalCollection, catalog: Catalog, tmp_path: Path
) -> None:
    make(groups)
    groups.delete(["g0/1"])
    before = places(groups)
    taken = catalog.snapshot("groups")
    assert taken.map_sha256
    groups.upsert([item(0, 2000)])
    make(groups)
    restored = catalog.restore(taken.name, "copy")
    copy = catalog.open(restored.name)
    assert places(copy) == before
    assert make(copy) == (len(before), 0, 0)
    # A map of later items is none of a collection that goes on from before them.
    shutil.copyfile(tmp_path / "collections/groups" / saved.FILE, tmp_path / "collections/copy" / saved.FILE)
    with pytest.raises(FailedPreconditionError, match="imagekin map copy"):
        copy.map()
    catalog.compact("groups")
    held = saved.read(tmp_path / "collections/groups")
    assert held is not None
    assert len(held.sequences) == GROUPS * EACH
    assert len(places(catalog.open("groups"))) == GROUPS * EACH
    catalog.drop("groups")
    assert not (tmp_path / "collections/groups").exists()


def test_a_damaged_map_is_left_out_of_snapshots_and_of_what_is_restored_with_a_word(
    groups: LocalCollection, catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(groups)
    taken = catalog.snapshot("groups")
    file = tmp_path / "snapshots" / taken.name / saved.FILE
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert catalog.restore(taken.name, "copy").count == GROUPS * EACH
    assert "`imagekin map copy` makes it again" in caplog.text
    assert saved.read(tmp_path / "collections/copy") is None
    file = tmp_path / "collections/groups" / saved.FILE
    unknown_to_zip = bytearray(file.read_bytes())
    unknown_to_zip[unknown_to_zip.find(b"PK\1\2") + 6] = 250  # the version that it takes to unpack
    for damage in (b"damage", bytes(unknown_to_zip)):
        file.write_bytes(damage)
        caplog.clear()
        assert not catalog.snapshot("groups").map_sha256
        assert "`imagekin map groups` makes it again" in caplog.text


def test_a_damaged_map_is_found_and_made_again(groups: LocalCollection, catalog: Catalog, tmp_path: Path) -> None:
    make(groups)
    file = tmp_path / "collections/groups" / saved.FILE
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:1500] + b"\0\0\0\0" + whole[1504:], b""):
        file.write_bytes(broken)
        with pytest.raises(DataLossError, match="imagekin map"):
            saved.read(file.parent)
        assert catalog.verify("groups").damaged_map
        with pytest.raises(FailedPreconditionError, match="no map yet"):
            groups.map()
    assert make(groups) == (GROUPS * EACH, GROUPS * EACH, 0)
    assert catalog.verify("groups").intact
    file.write_bytes(b"")
    assert catalog.verify("groups", repair=True).damaged_map
    assert not file.exists()


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_few_items_have_a_map_too(catalog: Catalog, count: int) -> None:
    few = catalog.create("few", space="s", dim=DIM)
    with pytest.raises(FailedPreconditionError, match="empty"):
        make(few)
    few.upsert([VectorItem(f"k{number}", vector(0, 0)) for number in range(count)])
    assert make(few) == (count, count, 0)
    assert len(places(few)) == count


_KILLED = """
import sys
from pathlib import Path
from imagekin.index.local.catalog import Catalog
from imagekin.index.maps import job, neighbours
from imagekin.index.maps.settings import MapSettings
def stop(*_):
    print("laid out", flush=True)
    sys.stdin.read()
job.lay_out = stop
with Catalog(Path(sys.argv[1]), read_only=True) as catalog:
    catalog.open("groups").make_map(MapSettings(), anew=False, advance=lambda count: None)
"""

pytest.importorskip("umapers", reason="maps need umapers: pip install '.[map]'")


def test_a_killed_run_goes_on_from_the_neighbours_that_it_had(
    groups: LocalCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(groups)
    whole, folder = places(groups), tmp_path / "collections/groups"
    (folder / saved.FILE).unlink()
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"laid out\n"
        process.send_signal(signal.SIGKILL)
    assert (folder / saved.NEIGHBOURS).is_file()
    asked: list[int] = []

    def never(landmarks: object, slots: list[object], k: int) -> None:
        asked.append(len(slots))
        raise AssertionError("the neighbours were there")

    with monkeypatch.context() as patched:
        patched.setattr(neighbours.Landmarks, "nearest", never)
        make(groups)
    assert (asked, places(groups)) == ([], whole)
    assert not (folder / saved.NEIGHBOURS).exists()
    # Neighbours of other items are not taken for these items' own.
    (folder / saved.NEIGHBOURS).write_bytes(b"not an archive")
    assert make(groups, anew=True)[1] == GROUPS * EACH
    assert places(groups) == whole


def test_the_command_makes_a_map_beside_a_writer_and_says_what_is_missing(
    groups: LocalCollection, tmp_path: Path
) -> None:
    def run(*arguments: str, before: str = "") -> "subprocess.CompletedProcess[str]":
        code = f"{before}\nfrom imagekin.cli.main import main\nmain()"
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)

    done = run("map", "groups", "--data-dir", str(tmp_path), "--json")
    assert json.loads(done.stdout.splitlines()[-1])["laid_out"] == GROUPS * EACH, done.stderr
    assert len(places(groups)) == GROUPS * EACH
    hidden = "import sys; sys.modules['umapers'] = None"
    missing = run("map", "groups", "--data-dir", str(tmp_path), before=hidden)
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "pip install" in missing.stderr
    assert "[map]" in missing.stderr
