"""The short form of the crash suite (see `crash`), and disks that are really full."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

from imagekin.index.local.catalog import Catalog
from imagekin.index.types import SearchOptions
from tests.disks import small_disk

REPOSITORY = Path(__file__).resolve().parents[2]


def start(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    ended = start("-m", "tests.index.crash", "--kills", "20", "--seed", "7", "--folder", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout.splitlines()[-1])["crash"]
    assert seen["kills"] == 20
    assert seen["acknowledged_writes"] > 5
    assert seen["opened_from_segments"] > 0


# Fills the disk, goes on writing and reading, deletes, and says what was acknowledged.
FILL = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    import numpy as np
    from imagekin.errors import ImagekinError
    from imagekin.index.local import maintenance
    from imagekin.index.local.catalog import Catalog
    from imagekin.index.types import SearchOptions, VectorItem
    maintenance.SEAL_FROM = 500
    kept, failed, gone = [], 0, []
    with Catalog(Path(sys.argv[1])) as catalog:
        collection = catalog.create("shop", space="ik1-a", dim=32)
        for number in range(10_000):
            vectors = np.random.default_rng(number).standard_normal((50, 32)).astype(np.float32)
            items = [VectorItem(f"{number}-{n}", vector, str(number)) for n, vector in enumerate(vectors)]
            try:
                collection.upsert(items)
                kept += [item.key for item in items]
            except ImagekinError as error:
                assert type(error).__name__ in ("ResourceExhaustedError", "UnavailableError"), error
                failed += 1
                if failed == 5:
                    break
        assert collection.count() == len(kept)
        assert len(collection.search(vectors, SearchOptions(k=3))) == 50
        try:
            collection.seal()
            collection.compact()
        except OSError:
            pass
        assert collection.count() == len(kept)
    print(json.dumps({"kept": kept, "failed": failed}))
    """
)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", megabytes=3) as folder:
        check_a_full_disk(folder)


def check_a_full_disk(folder: Path) -> None:
    ended = start("-c", FILL, str(folder))
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said["failed"] == 5
    assert len(said["kept"]) > 1000
    with Catalog(folder, read_only=True) as catalog:
        reading = catalog.open("shop")
        assert [item.key for item in reading.items()] == said["kept"]
        vectors = np.random.default_rng(3).standard_normal((50, 32)).astype(np.float32)
        assert [found[0].key for found in reading.search(vectors, SearchOptions(k=1))] == [f"3-{n}" for n in range(50)]
