"""Kills a writer again and again; after each time nothing acknowledged may be lost and nothing gone may return.

    python -m tests.index.crash --kills 1000 [--seed 0] [--folder DIR]

A process writes to one collection with two threads (upserts, deletions), while it seals, compacts, vacuums and takes
snapshots, all far more often than it would by itself. A third thread makes, drops and restores another collection,
over what is there or not, of which every item of one version bears that version's name. A reader process has both open
meanwhile and must never see an older state after a newer one, half of a write, or two versions at once. The writer is
killed with SIGKILL at a random moment, and the reader must see what is left. Then, now and then,
a derived file is damaged or garbage is appended to the log, and another process opens the collection, reads every item
and compares searches with NumPy. The parent keeps the account: what was acknowledged, and what was under way.

Items have thumbnails, some of a content of their own and some of one that others share. Of an item that is there none
may be missing or another's, in the collection and in what a snapshot restores; after compaction none may be left, not
one byte, of contents that are gone.

Processes are forked, not started, so that a kill costs some tenths of a second; the parent itself opens nothing.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imagekin.errors import FailedPreconditionError, NotFoundError
from imagekin.index.local import maintenance, store
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.local.thumbnails import FILE as THUMBNAILS
from imagekin.index.search import coded_top_k
from imagekin.index.types import SearchOptions, VectorItem
from imagekin.types import Vector
from tests.index.reference import unit

NAME = "shop"
DIM = 16
THREADS = 2
KEYS = 400
# The collection that is replaced again and again, and the number of items of each of its versions.
OTHER = "other"
OTHER_ITEMS = 30
PIXELS = 64
# Versions that are even share so many contents; the content of the others is the item's own.
SHARED = 97
_LONGEST = 0.12
_PATIENCE = 60.0


def vector_of(key: str, version: int) -> Vector:
    """Return the vector of a version of an item, float32 [D]."""
    seed = [version, *key.encode()]
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


def content_of(key: str, version: int) -> bytes:
    """Return the content hash of a version of an item."""
    content = f"{key} {version}" if version % 2 else str(version % SHARED)
    return hashlib.sha256(content.encode()).digest()


def thumbnail_of(content_hash: bytes) -> bytes:
    """Return the thumbnail of a content; it is found in a file by `thumbnails_in`."""
    return b"<thumbnail of %s>" % content_hash.hex().encode() * 10


def thumbnails_in(folder: Path) -> set[bytes]:
    """Return the contents of which bytes of a thumbnail are in the files of a collection."""
    data = b"".join(path.read_bytes() for path in sorted(folder.glob(f"{THUMBNAILS}*")))
    return {bytes.fromhex(found.decode()) for found in re.findall(rb"<thumbnail of ([0-9a-f]{64})>", data)}


def item_of(key: str, version: int, payload: dict[str, int] | None = None) -> VectorItem:
    """Return a version of an item."""
    content = content_of(key, version)
    vector = vector_of(key, version)
    return VectorItem(key, vector, str(version), payload, content, thumbnail=thumbnail_of(content))


def check_thumbnails(collection: LocalCollection, *, whole: bool) -> None:
    """Check that every thumbnail is the one of its content, and, if the collection is `whole`, that none is missing."""
    keys = [item.key for item in collection.items()]
    found = collection.thumbnails(keys)
    missing = [key for key, picture in zip(keys, found, strict=True) if picture is None]
    assert not (whole and missing), f"items without their thumbnail: {missing}"
    for picture in found:
        assert picture is None or picture.jpeg == thumbnail_of(picture.content_hash), "another one's thumbnail"


@dataclass(slots=True)
class Account:
    """What the collection must hold.

    Attributes:
        items: version of every key, as acknowledged.
        open_writes: by number, the writes that were begun and not acknowledged: the version of each key, None for gone.
        acknowledged: number of writes that were acknowledged.
        doing: what the writer was at when it was killed, by how often.
    """

    items: dict[str, int] = field(default_factory=dict)
    open_writes: dict[int, dict[str, int | None]] = field(default_factory=dict)
    acknowledged: int = 0
    doing: Counter[str] = field(default_factory=Counter)

    def read(self, lines: list[str]) -> None:
        """Take in what a writer said."""
        under_way: Counter[str] = Counter()
        for line in lines:
            said = json.loads(line)
            if "begin" in said:
                self.open_writes[said["begin"]] = said["to"]
                under_way["delete" if None in said["to"].values() else "upsert"] += 1
            elif "done" in said:
                self.acknowledged += 1
                versions = self.open_writes.pop(said["done"])
                under_way["delete" if None in versions.values() else "upsert"] -= 1
                self._apply(versions)
            else:
                under_way[said["doing"]] += 1 if said["on"] else -1
        self.doing.update(+under_way)

    def settle(self, found: dict[str, int]) -> None:
        """Compare with what was found after a kill, and go on from there; raises AssertionError."""
        for versions in self.open_writes.values():
            done = {key: found.get(key) == version for key, version in versions.items()}
            before = {key: found.get(key) == self.items.get(key) for key in versions}
            assert all(done.values()) or all(before.values()), f"half of a write is there: {versions}, {found}"
            if all(done.values()):
                self._apply(versions)
        self.open_writes.clear()
        lost = {key: version for key, version in self.items.items() if found.get(key) != version}
        assert not lost, f"acknowledged and lost: {lost}, found {[found.get(key) for key in lost]}"
        returned = found.keys() - self.items.keys()
        assert not returned, f"deleted and back: {returned}"

    def _apply(self, versions: dict[str, int | None]) -> None:
        for key, version in versions.items():
            if version is None:
                self.items.pop(key, None)
            else:
                self.items[key] = version


def write_on(folder: Path, seed: int, say: Callable[[dict[str, Any]], None]) -> None:
    """Write without end; to be killed."""
    _hurry()
    catalog = Catalog(folder)
    collection = catalog.open(NAME)
    numbers = iter(range(sys.maxsize))
    lock = threading.Lock()

    def change(random: np.random.Generator, own: int) -> None:
        count = int(random.integers(1, 12))
        keys = {f"{own}-{number}" for number in random.integers(0, KEYS, count).tolist()}
        with lock:
            number = next(numbers)
        if random.random() < 0.3:
            say({"begin": number, "to": dict.fromkeys(keys)})
            collection.delete(list(keys))
        else:
            version = int(random.integers(1 << 30))
            say({"begin": number, "to": dict.fromkeys(keys, version)})
            collection.upsert([item_of(key, version, {"version": version}) for key in keys])
        say({"done": number})

    def work(own: int) -> None:
        random = np.random.default_rng([seed, own])
        while True:
            change(random, own)

    def look_after() -> None:
        random = np.random.default_rng([seed, THREADS])
        acts: dict[str, Callable[[], object]] = {
            "seal": collection.seal,
            "compact": collection.compact,
            "snapshot": lambda: catalog.snapshot(NAME),
        }
        while True:
            what = str(random.choice(list(acts), p=[0.6, 0.25, 0.15]))
            say({"doing": what, "on": True})
            acts[what]()
            say({"doing": what, "on": False})
            time.sleep(float(random.random()) * 0.01)

    def replace() -> None:
        """Make, restore and drop the other collection; every state of it is whole and of one version, or none."""
        random = np.random.default_rng([seed, THREADS + 1])
        taken = [one.name for one in catalog.snapshots() if one.collection == OTHER]

        def make() -> None:
            if OTHER in catalog.names():
                catalog.drop(OTHER)
            version = int(random.integers(1 << 30))
            pixels = int(random.choice([0, PIXELS]))
            fill(catalog.create(OTHER, space="ik1-a", dim=DIM, thumbnail_size=pixels), version)

        def restore() -> None:
            if taken:
                catalog.restore(str(random.choice(taken)), OTHER, replace=True)

        def keep() -> None:
            if OTHER in catalog.names() and len(taken) < 20:
                taken.append(catalog.snapshot(OTHER).name)

        def drop() -> None:
            if OTHER in catalog.names():
                catalog.drop(OTHER)

        def write() -> None:
            if OTHER in catalog.names():
                fill(catalog.open(OTHER), int(random.integers(1 << 30)))

        def squeeze() -> None:
            if OTHER in catalog.names():
                catalog.compact(OTHER)

        def backfill() -> None:
            if OTHER in catalog.names():
                filled = catalog.open(OTHER)
                filled.keep_thumbnails(PIXELS)
                hashes = filled.content_hashes([f"k{n}" for n in range(OTHER_ITEMS)]).values()
                lacking = filled.without_thumbnail([value for value in hashes if value])
                filled.add_thumbnails({value: thumbnail_of(value) for value in lacking})
                check_thumbnails(filled, whole=True)

        acts: dict[str, Callable[[], None]] = {
            "make": make,
            "restore": restore,
            "keep": keep,
            "drop": drop,
            "write": write,
            "vacuum": squeeze,
            "backfill": backfill,
        }
        while True:
            what = str(random.choice(list(acts), p=[0.2, 0.3, 0.1, 0.05, 0.2, 0.05, 0.1]))
            say({"doing": what, "on": True})
            acts[what]()
            say({"doing": what, "on": False})

    threads = [threading.Thread(target=work, args=(own,)) for own in range(THREADS)]
    threads += [threading.Thread(target=look_after), threading.Thread(target=replace)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def fill(collection: LocalCollection, version: int) -> None:
    """Write all items of a version of the other collection, in one write."""
    collection.upsert([item_of(f"k{n}", version) for n in range(OTHER_ITEMS)])


def version_of(collection: LocalCollection) -> int | None:
    """Return the version that the other collection is of, None when it is empty; raises when it is not of one."""
    stored = list(collection.items())
    if not stored:
        return None  # made, and not filled yet
    labels = {item.label for item in stored}
    assert len(stored) == OTHER_ITEMS, f"{len(stored)} items of {labels}"
    assert len(labels) == 1, f"mixed: {labels}"
    version = int(str(labels.pop()))
    for item in stored:
        np.testing.assert_allclose(item.vector, unit(vector_of(item.key, version))[0], atol=1e-6)
    found = collection.search(vector_of("k0", version)[None], SearchOptions(k=OTHER_ITEMS))[0]
    # Another version may have come between the two reads, which is not mixed with this one.
    assert len({one.label for one in found}) <= 1, f"mixed: { ({one.label for one in found}) }"
    return version


def follow(folder: Path, _: int, say: Callable[[dict[str, Any]], None]) -> None:
    """Read both collections as a replica does, until the parent's end of the pipe is gone; to be killed."""
    _hurry()
    looked = 0
    with Catalog(folder, read_only=True) as catalog:
        last = 0
        while True:
            reading = catalog.open(NAME)
            items = list(reading.items())
            labels = [item.payload == {"version": int(str(item.label))} for item in items]
            assert all(labels), "half of an item"
            sequence = reading.info().sequence
            assert sequence >= last, f"write {sequence} after {last}"
            last = sequence
            check_thumbnails(reading, whole=False)
            with contextlib.suppress(NotFoundError):
                version_of(catalog.open(OTHER))
                check_thumbnails(catalog.open(OTHER), whole=False)
            looked += 1
            say({"looked": looked})


def check(folder: Path, seed: int, say: Callable[[dict[str, Any]], None]) -> None:
    """Open the collection, read all of it, compare searches with NumPy, and say what it holds."""
    _hurry()
    random = np.random.default_rng(seed)
    with Catalog(folder) as catalog:
        collection = catalog.open(NAME)
        sealed = collection._store.sealed is not None
        coded = collection._store.snapshot().codes is not None
        stored = list(collection.items())
        if collection._store._maintenance._unchecked is not None:
            end = time.monotonic() + _PATIENCE
            while collection._store._maintenance._unchecked is not None and time.monotonic() < end:
                time.sleep(0.002)
        with collection._store._maintenance._work_lock:
            assert len(stored) == collection.count() == collection.info().count
        found = {}
        for item in stored:
            assert item.label is not None
            found[item.key] = int(item.label)
            assert item.payload == {"version": int(item.label)}
            np.testing.assert_allclose(item.vector, unit(vector_of(item.key, int(item.label)))[0], atol=1e-6)
            assert item.content_hash == content_of(item.key, int(item.label))
        check_thumbnails(collection, whole=True)
        if stored:
            queries = random.standard_normal((4, DIM)).astype(np.float32)
            products = unit(queries) @ np.stack([item.vector for item in stored]).T
            (alone,) = collection.search(queries[:1], SearchOptions(k=5))
            assert [one.key for one in alone] == [stored[place].key for place in np.argsort(-products[0])[:5]]
            for row, answer in enumerate(collection.search(queries, SearchOptions(k=5))):
                best = np.argsort(-products[row], kind="stable")[:5]
                assert [one.key for one in answer] == [stored[place].key for place in best]
    with Catalog(folder) as catalog:
        assert all(not info.error for info in catalog.list())
        if OTHER in catalog.names():
            version_of(catalog.open(OTHER))
            check_thumbnails(catalog.open(OTHER), whole=False)
            assert catalog.verify(OTHER).intact
        assert not [path for path in (folder / "collections").iterdir() if path.name.startswith((".new-", ".gone-"))]
        assert catalog.verify(NAME).intact
        taken = catalog.snapshots()
        if taken and random.random() < 0.2:
            one = taken[int(random.integers(len(taken)))]
            assert catalog.restore(one.name, "copy").count == one.count
            assert catalog.verify("copy").intact
            check_thumbnails(catalog.open("copy"), whole=one.collection == NAME)
            catalog.drop("copy")
        if len(taken) > 25:
            shutil.rmtree(folder / "snapshots")
    orphans = 0
    if random.random() < 0.3:
        live = {content_of(item.key, int(str(item.label))) for item in stored}
        orphans = len(thumbnails_in(folder / "collections" / NAME) - live)
        with Catalog(folder) as catalog:
            catalog.compact(NAME)
        left = thumbnails_in(folder / "collections" / NAME)
        assert left == live, f"{len(left - live)} thumbnails of nothing after compaction, {len(live - left)} are lost"
    say({"orphans": orphans, "found": found, "sealed": sealed, "coded": coded})


def refused(folder: Path, _: int, say: Callable[[dict[str, Any]], None]) -> None:
    """Try to be a second writer."""
    try:
        Catalog(folder).open(NAME)
        say({"refused": False})
    except FailedPreconditionError:
        say({"refused": True})


def damage(folder: Path, random: np.random.Generator) -> str:
    """Damage a derived file, or leave garbage after the log's end; return what was done."""
    collection = folder / "collections" / NAME
    files = [path for path in sorted((collection / "segments").rglob("*")) if path.is_file()]
    kind = str(random.choice(["none", "flip", "cut", "remove", "tail"], p=[0.6, 0.1, 0.1, 0.1, 0.1]))
    if kind == "tail":
        log = collection / "items.sqlite-wal"
        if log.exists():
            with log.open("ab") as file:
                file.write(random.bytes(int(random.integers(1, 9000))))
        return kind
    if kind == "none" or not files:
        return "none"
    path = files[int(random.integers(len(files)))]
    data = bytearray(path.read_bytes())
    if kind == "remove":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[: int(random.integers(len(data) + 1))])
    elif data:
        data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
        path.write_bytes(data)
    return kind


def run(folder: Path, kills: int, seed: int, on_kill: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Kill a writer `kills` times and return what was seen; raises AssertionError when something is lost."""
    random = np.random.default_rng(seed)
    account = Account()
    damages: Counter[str] = Counter()
    sealed = coded = looked = orphans = 0
    _wait(*_fork(_make, folder, seed))
    for number in range(kills):
        child, output = _fork(write_on, folder, seed * 1_000_003 + number)
        # Not before it began to write, most often: else only opening would be tested.
        first = [output.readline()] if random.random() < 0.95 else []
        if random.random() < 0.05 and first:
            assert _wait(*_fork(refused, folder, 0)) == [{"refused": True}]
        replica, seen = _fork(follow, folder, 0)
        time.sleep(float(random.random()) * _LONGEST)
        os.kill(child, signal.SIGKILL)
        with output:
            lines = first + output.readlines()
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself"
        account.read([line for line in lines if line.endswith("\n")])
        looked += _looked_again(replica, seen)
        damages[damage(folder, random)] += 1
        (answer,) = _wait(*_fork(check, folder, seed + number))
        account.settle(answer["found"])
        sealed += bool(answer["sealed"])
        coded += bool(answer["coded"])
        orphans += answer["orphans"]
        on_kill(number + 1)
    return {
        "kills": kills,
        "acknowledged_writes": account.acknowledged,
        "items": len(account.items),
        "killed_during": dict(account.doing),
        "damages": dict(damages),
        "opened_from_segments": sealed,
        "opened_with_codes": coded,
        "looks_of_replicas": looked,
        "orphans_compacted_away": orphans,
    }


def _looked_again(replica: int, seen: Any) -> int:
    """Let a replica look at what the killed writer left, kill it, and return how often it looked."""
    with seen:
        looks = [seen.readline() for _ in range(2)]
        if all(looks):
            os.kill(replica, signal.SIGKILL)
        lines = [*looks, *seen.readlines()]
    _, status = os.waitpid(replica, 0)
    assert os.WIFSIGNALED(status), "a replica failed, see above"
    return sum(line.endswith("\n") for line in lines)


def _make(folder: Path, _: int, say: Callable[[dict[str, Any]], None]) -> None:
    Catalog(folder).create(NAME, space="ik1-a", dim=DIM, thumbnail_size=PIXELS).close()
    say({})


def _hurry() -> None:
    """Let the store do by itself, all the time, what it does now and then."""
    maintenance.SEAL_FROM, maintenance.SEAL_WHEN_IDLE_FROM = 100, 50
    maintenance._SCRUB_AFTER_SECONDS, maintenance._REST_FACTOR = 0.0, 0.0
    coded_top_k.MIN_ROWS = coded_top_k._ROWS_PER_NEIGHBOUR = maintenance._ENCODE_FROM = 16
    coded_top_k.MIN_DIM = DIM
    store.COMPACT_FROM, store.COMPACT_APART_FROM, store.KEPT_TOMBSTONES = 64, 128, 300


def _fork(work: Callable[[Path, int, Callable[[dict[str, Any]], None]], None], folder: Path, seed: int) -> Any:
    """Run work in another process and return its id and what it says, a file of JSON lines."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, os.fdopen(reading, encoding="utf-8", errors="replace")
    status = 1
    try:
        os.close(reading)

        def say(said: dict[str, Any]) -> None:
            # One write a line, so that a line is whole or not there.
            os.write(writing, json.dumps(said).encode() + b"\n")

        work(folder, seed, say)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, output: Any) -> list[dict[str, Any]]:
    with output:
        lines = output.readlines()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the process failed ({status}), see above"
    return [json.loads(line) for line in lines]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Kill a writer again and again; nothing acknowledged may be lost.")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="default: a temporary one")
    options = parser.parse_args()
    started = time.monotonic()

    def tell(number: int) -> None:
        if number % 50 == 0:
            print(f"{number} kills, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        seen = run(folder, options.kills, options.seed, tell)
    print(json.dumps({"crash": seen, "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main()
