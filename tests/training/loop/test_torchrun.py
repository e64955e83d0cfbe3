"""Two processes that torchrun starts train, export, fail and go on as one does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from imagekin.training.loop import checkpoint
from imagekin.training.loop.trainer import pretrain
from imagekin.training.options import resolve_settings
from imagekin.training.settings import CHECKPOINT_FILE, METRICS_FILE, MODEL_FILE, REPORT_FILE

ROOT = Path(__file__).resolve().parents[3]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# Forty images and one step an epoch.
TINY = ("digits", "--limit", "4", "--batch-size", "40", "--device", "cpu", "--precision", "float32")
FAILING = """
import sys
from imagekin.errors import FailedPreconditionError
from imagekin.training.loop.distributed import rank
from imagekin.training.loop.trainer import Trainer
from imagekin.training.__main__ import main

step = Trainer.step
def failing(self, rows, rate):
    if rank() == 1 and self.position.step == 2:
        raise FailedPreconditionError("the cat sat on the keyboard")
    return step(self, rows, rate)
Trainer.step = failing
sys.exit(main())
"""


def start(out: Path, *options: str, script: tuple[str, ...] = ("-m", "imagekin.training")) -> subprocess.Popen[str]:
    command = [*TORCHRUN, *script, *TINY, "--out", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, error = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, out, error


def ours(error: str) -> list[str]:
    """Return the lines that are not torchrun's."""
    return [line for line in error.splitlines() if "imagekin train:" in line]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / METRICS_FILE).read_text().splitlines()]


def processes_of(run: Path) -> dict[str, int]:
    """Return the processes that train in a folder, by their number among them."""
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            told = (entry / "environ").read_bytes().split(b"\0")
            if str(run).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found |= {value[5:].decode(): int(entry.name) for value in told if value.startswith(b"RANK=")}
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    # Without chance in the views and with BatchNorm over both processes, both ways see the same numbers.
    same = ("--views", "none", "--sync-batchnorm", "--epochs", "1")
    given = {"limit": 4, "batch_size": 40, "views": "none", "epochs": 1, "device": "cpu", "precision": "float32"}
    pretrain(resolve_settings("digits", tmp_path / "one", given, resume=False))
    status, out, error = finish(start(tmp_path / "two", *same, "--json"))
    assert status == 0, error
    assert "terminate" not in error
    (line,) = out.splitlines()
    assert json.loads(line)["model"] == str(tmp_path / "two" / MODEL_FILE)
    assert {CHECKPOINT_FILE, METRICS_FILE, MODEL_FILE, REPORT_FILE} <= {p.name for p in (tmp_path / "two").iterdir()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    # The first step, in float32: only the order of the sums differs.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)


def test_a_failure_of_one_process_ends_both_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    script = (str(tmp_path / "failing.py"),)
    status, out, error = finish(start(tmp_path / "run", "--epochs", "9", script=script))
    assert status != 0
    assert out == ""
    assert ours(error) == ["imagekin train: process 1: the cat sat on the keyboard"]
    assert not (tmp_path / "run" / MODEL_FILE).exists()


def test_wrong_use_of_two_processes_is_said_once(tmp_path: Path) -> None:
    status, _, error = finish(start(tmp_path / "run", "--epochs", "-1"))
    assert status != 0
    assert ours(error) == ["imagekin train: --epochs must not be negative"]
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds a process by Linux's /proc")
def test_a_killed_process_ends_the_other_and_both_go_on_bit_for_bit(tmp_path: Path) -> None:
    options = ("--epochs", "15", "--checkpoint-seconds", "0")
    script = ("-m", "tests.training.unexported")
    assert finish(start(tmp_path / "whole", *options, script=script))[0] == 0
    cut = tmp_path / "cut"
    process = start(cut, *options, script=script)
    while process.poll() is None and not (cut / CHECKPOINT_FILE).exists():
        time.sleep(0.01)
    os.kill(processes_of(cut)["1"], signal.SIGKILL)
    status, _, error = finish(process)
    assert status != 0
    assert len(ours(error)) <= 1, error  # torchrun may end the first process before it has noticed
    assert not (cut / MODEL_FILE).exists()
    assert 0 < checkpoint.load(cut / CHECKPOINT_FILE).position.step < 15
    status, _, error = finish(start(cut, *options, "--resume", script=script))
    assert status == 0, error
    assert losses(cut) == losses(tmp_path / "whole")
    one, other = (checkpoint.load(run / CHECKPOINT_FILE).encoder for run in (cut, tmp_path / "whole"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
