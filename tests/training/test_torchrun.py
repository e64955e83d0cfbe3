"""Two processes that torchrun starts train, export and fail as one does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from training.settings import METRICS_FILE, MODEL_FILE

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# One step an epoch, without chance in the views: both ways see the same numbers.
TINY = ("digits", "--limit", "4", "--batch-size", "40", "--views", "none", "--sync-batchnorm", "--device", "cpu")


def train(out: Path, *options: str, together: bool) -> subprocess.CompletedProcess[str]:
    start = TORCHRUN if together else ()
    command = [sys.executable, *start, "-m", "training", *TINY, "--precision", "float32", "--out", str(out), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / METRICS_FILE).read_text().splitlines()]


def test_two_processes_train_as_one_does_and_fail_in_one_line(tmp_path: Path) -> None:
    assert train(tmp_path / "one", "--epochs", "1", together=False).returncode == 0
    done = train(tmp_path / "two", "--epochs", "1", "--json", together=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == str(tmp_path / "two" / MODEL_FILE)
    # The first step, in float32: only the order of the sums differs.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)
    refused = train(tmp_path / "two", together=True)
    assert refused.returncode != 0
    assert refused.stderr.count("kindred train:") == 1
    assert "holds a finished run" in refused.stderr
