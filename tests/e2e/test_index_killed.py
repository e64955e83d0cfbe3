"""`imagekin index` may be killed at any moment: the same command again finishes it, nothing missing, nothing twice."""

import json
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.artifacts import tiny_artifact
from tests.e2e.pictures import class_folders
from tests.e2e.processes import IMAGEKIN, quiet_environment, run

PER_CLASS = 300


def committed(database: Path) -> int:
    """Return how many items are on disk, as another process sees them."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as connection:
            return int(connection.execute("SELECT count(*) FROM item").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # not made yet


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_killed_and_run_again_it_holds_every_image_once(tmp_path: Path, share: float) -> None:
    photos = class_folders(tmp_path / "photos", per_class=PER_CLASS, side=96)
    model = tiny_artifact(tmp_path / "model.onnx")
    command = ["index", "shop", str(photos), "--model", str(model), "--data-dir", str(tmp_path / "data")]
    database = tmp_path / "data" / "collections" / "shop" / "items.sqlite"

    victim = subprocess.Popen([*IMAGEKIN, *command], stderr=subprocess.DEVNULL, env=quiet_environment())
    deadline = time.monotonic() + 60
    while committed(database) <= share * 3 * PER_CLASS and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    victim.kill()
    assert victim.wait(30) == -9, "it was meant to be killed half-way; give it more work"
    survived = committed(database)
    assert survived < 3 * PER_CLASS

    again = run(*command, "--json")
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout.splitlines()[-1])
    assert report["skipped"] == survived
    assert report["written"] == 3 * PER_CLASS - survived
    with closing(sqlite3.connect(database)) as connection:
        keys = [key for (key,) in connection.execute("SELECT key FROM item")]
    assert sorted(keys) == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))

    third = json.loads(run(*command, "--json").stdout.splitlines()[-1])
    assert (third["written"], third["skipped"]) == (0, 3 * PER_CLASS)
