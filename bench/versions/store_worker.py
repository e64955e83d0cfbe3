"""Run parts of the store's work on command, for `bench/versions/compare.py`, in the version found first on PYTHONPATH.

    python -P store_worker.py FOLDER EMBEDDINGS.npy

Fill a collection below FOLDER with nine tenths of the embeddings and ask for the last tenth. Then each line of standard
input is a task, and the answer one JSON line: the processor time, with that of the work in the background that follows
a write, and the time by the clock until the task is done, in seconds.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Background work has ended when so little processor time was used for so long.
_QUIET_SECONDS, _QUIET_FOR_SECONDS = 0.02, 2.0
_REPLACED, _SINGLE, _SEARCHES = 1000, 20, 8


class Store:
    """A collection in the layout of whichever version is run."""

    def __init__(self, folder: Path, embeddings: Path) -> None:
        # Before 0.2, `index` was a name of its own. This version may be installed beside it, so it is looked for first.
        before = not (Path(sys.path[0]) / "imagekin").is_dir()
        catalog: Any = importlib.import_module("index.catalog" if before else "imagekin.index.local.catalog")
        types: Any = importlib.import_module("index.types" if before else "imagekin.index.types")
        self._catalog_type: Any = catalog.Catalog
        self._item: Any = types.Item if before else types.VectorItem
        self._options: Any = types.SearchOptions(k=10)
        every = np.load(embeddings)
        asked = np.arange(len(every)) % 10 == 9
        self._vectors, self._queries = np.ascontiguousarray(every[~asked]), np.ascontiguousarray(every[asked])
        self._folder, self._random = folder, np.random.default_rng(0)
        self._catalog = self._catalog_type(folder)
        self._collection = self._catalog.create("bench", space="bench", dim=every.shape[1], index_kind="flat")
        for begin in range(0, len(self._vectors), 5000):
            self._collection.upsert(self._items(np.arange(begin, min(begin + 5000, len(self._vectors)))))
        self._collection.seal()
        self.settle()

    def settle(self) -> None:
        """Wait until the work in the background has ended."""
        before, since = time.process_time(), time.monotonic()
        while time.monotonic() < since + _QUIET_FOR_SECONDS:
            time.sleep(0.1)
            if time.process_time() > before + _QUIET_SECONDS:
                before, since = time.process_time(), time.monotonic()

    def search(self, count: int) -> None:
        """Search a few times for so many queries at once."""
        for _ in range(_SEARCHES):
            rows = self._random.integers(0, len(self._queries), count)
            self._collection.search(self._queries[rows], self._options)

    def replace(self, count: int) -> None:
        """Replace a thousand items, so many in each write."""
        rows = self._random.permutation(len(self._vectors))[:_REPLACED]
        for begin in range(0, _REPLACED, count):
            self._collection.upsert(self._items(rows[begin : begin + count]))

    def single(self, _: int) -> None:
        """Replace items one by one."""
        for row in self._random.integers(0, len(self._vectors), _SINGLE):
            self._collection.upsert(self._items(np.array([row])))

    def reopen(self, _: int) -> None:
        """Open the collection anew and search once."""
        self._catalog.close()
        self._catalog = self._catalog_type(self._folder)
        self._collection = self._catalog.open("bench")
        self._collection.search(self._queries[:1], self._options)

    def _items(self, rows: Any) -> list[Any]:
        return [self._item(str(row), self._vectors[row], f"c{row % 100}") for row in rows.tolist()]


def main() -> None:
    """Answer tasks until the end of standard input."""
    store = Store(Path(sys.argv[1]), Path(sys.argv[2]))
    tasks: dict[str, Callable[[int], None]] = {
        "search": store.search,
        "replace": store.replace,
        "single": store.single,
        "reopen": store.reopen,
    }
    print("ready", flush=True)
    for line in sys.stdin:
        name, count = line.split()
        cpu, clock = time.process_time(), time.perf_counter()
        tasks[name](int(count))
        clock = time.perf_counter() - clock
        if name != "search":
            store.settle()
        print(json.dumps([time.process_time() - cpu, clock]), flush=True)


if __name__ == "__main__":
    main()
