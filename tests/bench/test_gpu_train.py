"""The GPU's measurements run on a CPU in their small form, go on where they stopped, and never invent a figure."""

import contextlib
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import gpu_train
from imagekin.training.__main__ import main as training_main


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return answer


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run trainings in this process, which has loaded by now what each process would have to, and make them short."""

    def train(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        said = io.StringIO()
        with monkeypatch.context() as patch, contextlib.redirect_stdout(said):
            patch.setattr(sys, "argv", [*command[2:], "--no-report"])
            status = training_main()
        return subprocess.CompletedProcess(command, status, said.getvalue())

    # The module's own name: whatever else starts processes goes on doing so.
    monkeypatch.setattr(gpu_train, "subprocess", SimpleNamespace(**vars(subprocess) | {"run": train}))
    monkeypatch.setattr(gpu_train, "SMALL", dataclasses.replace(gpu_train.SMALL, seconds=0.2))


@pytest.mark.usefixtures("at_once")
def test_the_small_form_measures_every_piece_and_measures_none_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--small", "--out", str(tmp_path), "--minutes", "60"]
    gpu_train.main([*small, "--minutes", "0"])
    assert last_line(capsys)["figures"]["left"] == list(gpu_train.PIECES)
    gpu_train.main([*small, "--piece", "tiled"])
    first = last_line(capsys)["figures"]
    assert first["left"] == ["speed", "supcon", "cross-entropy", "rotation"]
    gpu_train.main([*small, "--unscored"])
    trained = last_line(capsys)["figures"]
    assert trained["left"] == []
    assert trained["unscored"] == list(gpu_train.LEARNED)
    assert trained["cross-entropy"]["epochs"] == trained["supcon"]["epochs"]
    gpu_train.main([*small, "--score"])
    whole = last_line(capsys)["figures"]
    assert whole["unscored"] == []
    assert whole["tiled"] == first["tiled"]
    assert whole["speed"]["images_per_second"] > 0
    for method in gpu_train.LEARNED:
        assert 0 < whole[method]["linear_accuracy"] <= 1
        assert whole[method]["epochs"] >= 1
    gpu_train.main(small)
    assert last_line(capsys)["figures"] == whole


def test_a_training_that_runs_out_of_time_is_left_for_the_next_call(tmp_path: Path) -> None:
    state = {"pieces": {}, "lengths": {"supcon": {"epochs": 1000, "compile": False}}}
    assert gpu_train.learn(gpu_train.SMALL, "supcon", tmp_path, state, left=0.2) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_table_says_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu_train.main(["--out", str(tmp_path / "none")])
    said = capsys.readouterr().out
    assert said.count(gpu_train.NOT_MEASURED) == 4 + 4 * len(gpu_train.LEARNED)
    assert json.loads(said.splitlines()[-1])["targets"] == []
    assert not (tmp_path / "none").exists()


def test_a_target_is_judged_only_by_what_was_measured() -> None:
    assert gpu_train.targets_of({}) == []
    found = {"supcon": {"knn_accuracy": 0.96, "linear_accuracy": 0.94}}
    assert [target.met for target in gpu_train.targets_of(found)] == [True, False]
    found["cross-entropy"] = {"knn_accuracy": 0.94, "linear_accuracy": 0.939}
    assert [target.met for target in gpu_train.targets_of(found)] == [True, True, False, False]


def test_options_become_the_commands_flags() -> None:
    assert gpu_train.flags({"batch_size": 4, "compile": True}) == ["--batch-size", "4", "--compile"]
