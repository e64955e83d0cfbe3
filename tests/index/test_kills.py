"""A killed `imagekin index` is finished by a second run; the long run is `python -m tests.index.kills --runs 50`."""

import json
import subprocess
import sys

import pytest

from tests.e2e.processes import quiet_environment


@pytest.mark.parametrize(
    ("kinds", "destination"), [("zip,tar.xz,Parquet", []), ("tar.zst,tar.bz2,folder of archives", ["--address"])]
)
def test_killed_at_random_moments_and_finished_nothing_is_missing_twice_or_done_again(
    kinds: str, destination: list[str]
) -> None:
    # This seed kills each run after 29 to 108 images and a few milliseconds, so that a fast machine is half-way, too.
    runs = ["--runs", "3", "--images", "400", "--kinds", kinds, "--seed", "1064"]
    command = [sys.executable, "-m", "tests.index.kills", *runs, *destination]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=quiet_environment())
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["killed_half_way"] >= 1
    assert figures["missing"] == figures["twice"] == 0
    assert figures["redone_batches_max"] <= 1
