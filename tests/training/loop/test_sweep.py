"""Runs beside each other: what differs is shown, what each option moves is computed from real trainings."""

import json
import math
from pathlib import Path

import pytest

from imagekin.cli import main as cli
from imagekin.errors import InvalidArgumentError, NotFoundError
from imagekin.training.evaluation.compare import compare
from imagekin.training.loop.sweep import SweepReport, SweepRow, parse_variation, sweep
from imagekin.training.settings import TrainSettings
from tests.artifacts import tiny_artifact

SMALL = ("--set", "limit=6", "--set", "epochs=1", "--set", "batch-size=30", "--set", "warmup-epochs=0")


def saved_run(folder: Path, accuracy: float | None, **changes: object) -> Path:
    folder.mkdir()
    settings = TrainSettings(data="digits", out=folder).to_dict() | changes
    (folder / "config.json").write_text(json.dumps(settings))
    if accuracy is not None:
        (folder / "report.json").write_text(json.dumps({"knn_accuracy": accuracy}))
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2.0, "seconds": 1.5}\n' * 2)
    return folder


def test_compare_shows_the_settings_that_differ_and_no_others(tmp_path: Path) -> None:
    first = saved_run(tmp_path / "a", 0.5, temperature=0.1)
    second = saved_run(tmp_path / "b", 0.75, temperature=0.5)
    comparison = compare([first, second])
    assert comparison.settings == {"temperature": (0.1, 0.5)}
    assert comparison.scores["knn_accuracy"] == (0.5, 0.75)
    assert comparison.scores["linear_accuracy"] == (None, None)
    assert comparison.train_seconds == (3.0, 3.0)


def test_of_a_run_beside_an_artifact_defaults_are_not_shown(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", 0.5, temperature=0.3)
    shown = compare([tiny_artifact(tmp_path / "model.onnx"), run]).settings
    assert shown["temperature"] == (None, 0.3)
    assert "data" in shown
    assert not {"epochs", "batch_size", "threads", "resume"} & shown.keys()


def test_compare_refuses_one_run_strange_folders_and_unfinished_runs(tmp_path: Path) -> None:
    whole = saved_run(tmp_path / "whole", 0.5)
    with pytest.raises(InvalidArgumentError, match="two runs"):
        compare([whole])
    with pytest.raises(InvalidArgumentError, match="no training run"):
        compare([whole, tmp_path])
    with pytest.raises(NotFoundError, match="finish the run"):
        compare([whole, saved_run(tmp_path / "half", None)])


def test_effects_are_the_reach_of_the_means_with_the_base_among_them() -> None:
    rows = (
        SweepRow("base", None, (0.8, 0.9)),
        SweepRow("temperature", 0.05, (0.7, 0.8)),
        SweepRow("temperature", 0.5, (0.9, 0.94)),
        SweepRow("learning_rate", 1.0, (math.nan, math.nan)),
    )
    report = SweepReport(rows)
    assert report.effects() == pytest.approx({"temperature": 0.17, "learning_rate": 0.0})
    assert list(report.effects()) == ["temperature", "learning_rate"]
    assert report.seed_spread() == pytest.approx(0.1)
    assert report.to_json()["rows"][3]["knn_accuracy"] is None  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("learning-rate=1e-4,1e-3", "learning_rate", (1e-4, 1e-3)),
        ("--batch-size=64", "batch_size", (64,)),
        ("rotations-as-classes=true,false", "rotations_as_classes", (True, False)),
        ("optimiser=sgd,lars", "optimiser", ("sgd", "lars")),
        ("views=supcon,simclr", "views", ("supcon", "simclr")),
    ],
)
def test_a_variation_is_read_as_the_settings_own_type(text: str, name: str, values: tuple[object, ...]) -> None:
    assert parse_variation(text) == (name, values)


@pytest.mark.parametrize(
    "text", ["temperature", "temperature=", "warmth=1", "epochs=1.5", "optimiser=adam", "tensorboard=maybe"]
)
def test_a_variation_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="--vary"):
        parse_variation(text)


@pytest.mark.parametrize("name", ["seed", "out", "data"])
def test_what_a_sweep_sets_itself_cannot_be_varied(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="varied"):
        sweep(TrainSettings(data="digits", out=tmp_path / "s"), {name: ("1",)})
    assert not (tmp_path / "s").exists()


def test_a_value_out_of_range_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="temperature"):
        sweep(TrainSettings(data="digits", out=tmp_path / "s"), {"temperature": (0.1, -1.0)})
    assert not (tmp_path / "s").exists()


def test_the_command_sweeps_goes_on_and_its_runs_can_be_compared_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def imagekin(*arguments: str) -> str:
        assert cli.run(arguments) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    command = ("sweep", "digits", "--out", str(tmp_path / "s"), "--vary", "temperature=0.1,0.5", *SMALL, "--json")
    found = json.loads(imagekin(*command).splitlines()[-1])
    assert [row["value"] for row in found["rows"]] == [None, 0.1, 0.5]
    # The base has this temperature already: the same seed gives the same encoder.
    assert found["rows"][0]["knn_accuracy"] == found["rows"][1]["knn_accuracy"]
    assert set(found["effects"]) == {"temperature"}
    models = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/model.onnx")}
    assert len(models) == 3
    assert json.loads(imagekin(*command).splitlines()[-1]) == found
    assert {path: path.stat().st_mtime_ns for path in models} == models, "finished runs are not trained again"

    base, other = tmp_path / "s" / "base-seed0", tmp_path / "s" / "temperature=0.5-seed0"
    compared = imagekin("compare", str(base), str(other))
    assert "temperature" in compared
    assert "learning-rate" not in compared
    written = imagekin("report", str(base), "--json")
    assert Path(json.loads(written)["report"]).stat().st_size > 10_000
