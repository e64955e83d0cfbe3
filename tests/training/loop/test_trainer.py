"""A run learns, leaves what it promises, goes on bit for bit after a kill, and says in one line what is wrong."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagekin.encoder.artifact import read_metadata
from imagekin.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    ImagekinError,
    InvalidArgumentError,
    NotFoundError,
)
from imagekin.training.__main__ import main
from imagekin.training.export.export import space_of
from imagekin.training.loop import checkpoint
from imagekin.training.loop.checkpoint import Checkpoint, load_run, load_weights
from imagekin.training.loop.run_folder import open_run
from imagekin.training.loop.trainer import TrainReport, pretrain
from imagekin.training.models.encoders import IMAGENET_NORMALISATION, build_encoder
from imagekin.training.options import resolve_settings
from imagekin.training.presets import recommended
from imagekin.training.settings import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    MODEL_FILE,
    REPORT_FILE,
    TrainSettings,
)

ROOT = Path(__file__).resolve().parents[3]


def quick(out: Path, **changes: Any) -> TrainSettings:
    """Return settings of a run of a second or two on a few digits."""
    base = dataclasses.replace(recommended("digits", out), limit=12, epochs=3, batch_size=40, threads=1)
    return dataclasses.replace(base, precision="float32", **changes)


def space(run: Path) -> str:
    """Return the embedding space of a run's weights."""
    loaded = load_run(run)
    return space_of(loaded.encoder, loaded.normalisation)


def write_images(root: Path, classes: int = 2, each: int = 2) -> Path:
    draws = np.random.default_rng(0)
    for number in range(classes):
        folder = root / f"class{number}"
        folder.mkdir(parents=True)
        for image in range(each):
            Image.fromarray(draws.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{image}.png")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainReport]:
    out = tmp_path_factory.mktemp("run") / "digits"
    return out, pretrain(quick(out))


def test_a_run_leaves_the_model_its_settings_its_metrics_and_its_scores(finished: tuple[Path, TrainReport]) -> None:
    out, report = finished
    assert TrainSettings.load(out) == quick(out)
    lines = [json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["step"] for line in lines] == [3, 6, 9]
    assert all({"loss", "learning_rate", "images_per_second", "seconds"} <= set(line) for line in lines)
    answer = report.to_json()
    assert answer["model"] == str(out / MODEL_FILE)
    assert answer["loss"] == lines[-1]["loss"]
    assert {"knn_accuracy", "linear_accuracy", "onnx_max_abs_diff", "images_per_second", "seconds"} <= set(answer)
    metadata = read_metadata(out / MODEL_FILE)
    assert metadata.objective == "supcon"
    assert metadata.dataset == "digits"
    assert metadata.preprocess.height == metadata.preprocess.width == 16
    assert (out / REPORT_FILE).exists()


def test_a_finished_run_is_neither_trained_again_nor_overwritten_by_accident(
    finished: tuple[Path, TrainReport],
) -> None:
    out, _ = finished
    before = leaves(checkpoint.load(out / CHECKPOINT_FILE))
    with pytest.raises(AlreadyExistsError, match=r"a finished run.*--resume.*--overwrite"):
        pretrain(quick(out))
    again = pretrain(quick(out), resume=True)
    assert again.position.step == 9
    assert len((out / METRICS_FILE).read_text().splitlines()) == 3
    assert leaves(checkpoint.load(out / CHECKPOINT_FILE)) == before


def test_a_run_goes_on_only_as_it_was_started(finished: tuple[Path, TrainReport]) -> None:
    out, _ = finished
    with pytest.raises(InvalidArgumentError, match="--epochs 3, not 4"):
        pretrain(dataclasses.replace(quick(out), epochs=4), resume=True)


def test_a_checkpoint_opens_without_running_anybodys_code(finished: tuple[Path, TrainReport]) -> None:
    out, _ = finished
    values = torch.load(out / CHECKPOINT_FILE, weights_only=True)
    assert {"encoder", "objective", "optimiser", "position", "rng", "settings"} <= set(values)
    run = load_run(out)
    assert not run.encoder.training
    assert run.class_names == tuple("0123456789")


@pytest.mark.usefixtures("unexported")
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    finished: tuple[Path, TrainReport], tmp_path: Path
) -> None:
    out, report = finished
    pretrain(quick(tmp_path / "same"))
    pretrain(quick(tmp_path / "other", seed=1))
    assert space(tmp_path / "same") == report.run.space
    assert space(tmp_path / "other") != report.run.space
    assert same_tensors(out, tmp_path / "same")


def test_zero_epochs_export_random_weights(tmp_path: Path) -> None:
    report = pretrain(dataclasses.replace(quick(tmp_path / "run"), epochs=0))
    assert (tmp_path / "run" / MODEL_FILE).exists()
    assert report.position.step == 0
    assert report.to_json()["loss"] is None


def test_simclr_needs_no_labels_and_supcon_says_that_it_does(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "data", classes=1, each=6)
    flat = folder / "class0"
    settings = dataclasses.replace(recommended(str(flat), tmp_path / "run"), image_size=16, epochs=1, threads=1)
    with pytest.raises(InvalidArgumentError, match="--objective simclr"):
        pretrain(settings)
    report = pretrain(dataclasses.replace(settings, objective="simclr", data=str(flat)))
    assert report.run.scores is None
    assert (tmp_path / "run" / MODEL_FILE).exists()


@pytest.mark.usefixtures("unexported")
def test_one_class_is_refused_and_single_images_are_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = write_images(tmp_path / "one", classes=1, each=3)
    with pytest.raises(InvalidArgumentError, match="one class"):
        pretrain(dataclasses.replace(recommended(str(one), tmp_path / "run"), threads=1))
    lonely = write_images(tmp_path / "lonely", classes=3, each=1)
    pretrain(dataclasses.replace(recommended(str(lonely), tmp_path / "run"), image_size=16, epochs=1, threads=1))
    assert "3 of 3 classes have a single image" in caplog.text


def test_test_images_are_looked_at_before_the_training(tmp_path: Path) -> None:
    train, test = write_images(tmp_path / "train"), write_images(tmp_path / "test", classes=3)
    settings = dataclasses.replace(recommended(str(train), tmp_path / "run"), image_size=16, threads=1)
    with pytest.raises(InvalidArgumentError, match="class2"):
        pretrain(dataclasses.replace(settings, test=str(test)))
    with pytest.raises(NotFoundError):
        pretrain(dataclasses.replace(settings, test=str(tmp_path / "nowhere")))
    assert not (tmp_path / "run").exists()


def test_crops_from_larger_images_and_named_test_images_are_scored(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", each=4)
    settings = dataclasses.replace(recommended(str(data), tmp_path / "run"), image_size=16, epochs=1, threads=1)
    report = pretrain(dataclasses.replace(settings, crop_from=24, test=str(data), allow_overlap=True))
    assert report.run.scores is not None
    assert report.run.scores.knn_accuracy > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "tpu"}, "there is no device 'tpu'"),
        ({"objective": "magic"}, "there is no objective 'magic'"),
        ({"encoder": "magic"}, "there is no encoder 'magic'"),
        ({"views": "magic"}, "there is no preset of views 'magic'"),
        ({"weights": Path("no/such.pth")}, "no file of weights"),
    ],
)
def test_a_wrong_choice_is_one_line_that_names_it(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ImagekinError, match=message) as caught:
        pretrain(quick(tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="--device cpu"):
        pretrain(quick(tmp_path / "run", device="cuda"))


def test_a_loss_that_is_no_number_stops_the_run_and_spoils_no_checkpoint(tmp_path: Path) -> None:
    settings = quick(tmp_path / "run", learning_rate=1e30, optimiser="sgd", checkpoint_seconds=0.0)
    with pytest.raises(FailedPreconditionError, match=r"no number any more in epoch 1.*--learning-rate"):
        pretrain(settings)
    assert not (tmp_path / "run" / MODEL_FILE).exists()


def test_a_second_process_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    settings = quick(tmp_path / "run")
    with (
        open_run(settings, resume=False, overwrite=False),
        pytest.raises(FailedPreconditionError, match="another process"),
        open_run(settings, resume=True, overwrite=False),
    ):
        pass


@pytest.mark.usefixtures("unexported")
def test_a_run_starts_from_another_runs_weights(finished: tuple[Path, TrainReport], tmp_path: Path) -> None:
    out, report = finished
    start = quick(tmp_path / "run", weights=out)
    pretrain(dataclasses.replace(start, epochs=0))
    assert space(start.out) == report.run.space
    found = load_weights(out / CHECKPOINT_FILE)
    assert found is not None
    state, normalisation = found
    assert normalisation == load_run(out).normalisation
    assert set(state) == set(load_run(out).encoder.state_dict())


@pytest.mark.usefixtures("unexported")
def test_torchvisions_files_are_a_start_and_keep_their_stem(tmp_path: Path) -> None:
    torch.save(build_encoder("resnet18", 224).state_dict() | {"fc.weight": torch.zeros(2, 512)}, tmp_path / "w.pth")
    settings = quick(tmp_path / "run", encoder="resnet18", weights=tmp_path / "w.pth")
    pretrain(dataclasses.replace(settings, epochs=0, image_size=32))
    run = load_run(tmp_path / "run")
    assert run.normalisation == IMAGENET_NORMALISATION
    assert run.encoder.state_dict()["conv1.weight"].shape[-1] == 7


def test_damaged_checkpoints_are_said_in_one_line(tmp_path: Path) -> None:
    for name, content in (("a.pt", b""), ("b.pt", b"no checkpoint"), ("c.pt", b"\x80\x02cos\nsystem\n.")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataLossError) as caught:
            checkpoint.load(tmp_path / name)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# The command, as a process


OPTIONS = {"limit": 12, "batch_size": 40, "epochs": 20, "threads": 1, "checkpoint_seconds": 0.1}


def arguments(out: Path, *options: str) -> list[str]:
    given = [word for name, value in OPTIONS.items() for word in ("--" + name.replace("_", "-"), str(value))]
    return ["digits", "--out", str(out), *given, *options]


def command(out: Path, *options: str, module: str = "imagekin.training") -> list[str]:
    return [sys.executable, "-m", module, *arguments(out, *options)]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}


def same_tensors(first: Path, second: Path) -> bool:
    """Say whether two runs have equal checkpoints: weights, head, optimiser and random states."""
    one, two = (checkpoint.load(run / CHECKPOINT_FILE) for run in (first, second))
    return leaves(one) == leaves(two)


def leaves(saved: Checkpoint) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []

    def walk(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.append((name, value.contiguous().numpy().tobytes()))
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                walk(f"{name}/{key}", value[key])
        elif isinstance(value, list):
            for position, part in enumerate(value):
                walk(f"{name}/{position}", part)
        else:
            found.append((name, repr(value).encode()))

    walk("", {"encoder": saved.encoder, "objective": saved.objective, "optimiser": saved.optimiser, "rng": saved.rng})
    return found


@pytest.mark.usefixtures("unexported")
def test_a_run_killed_again_and_again_ends_with_the_bits_of_one_never_killed(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    goes_on = command(killed, "--resume", module="tests.training.unexported")
    pretrain(resolve_settings("digits", whole, OPTIONS, resume=False))
    kills = 0
    for _ in range(2):
        process = subprocess.Popen(goes_on, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = written(killed)
        while process.poll() is None and written(killed) == before:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    steps = checkpoint.load(killed / CHECKPOINT_FILE).position.step
    assert kills == 2
    assert 0 < steps < 3 * OPTIONS["epochs"]
    subprocess.run(goes_on, env=environment(), check=True, capture_output=True)
    assert same_tensors(whole, killed)
    assert losses(whole) == losses(killed)


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    return [(line["epoch"], line["loss"]) for line in lines]


def written(run: Path) -> int:
    path = run / CHECKPOINT_FILE
    return path.stat().st_mtime_ns if path.exists() else 0


def test_the_command_ends_with_one_json_object_and_prints_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path / "run", "--epochs", "2", "--json"), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert 0 <= answer["knn_accuracy"] <= 1
    assert answer["onnx_max_abs_diff"] <= 1e-4
    assert Path(answer["model"]).is_file()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--epochs", "-1"], 2, "--epochs must not be negative"),
        (["--learning-rate", "nan"], 2, "--learning-rate must be a number above 0"),
        (["--image-size", "many"], 2, "--image-size"),
        (["--no-such-option"], 2, "--no-such-option"),
        (["--resume", "--overwrite"], 2, "exclude each other"),
        (["--weights", "nowhere.pth"], 1, "there is no file of weights"),
    ],
)
def test_wrong_use_is_one_line_and_a_status(
    tmp_path: Path,
    options: list[str],
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["training", *arguments(tmp_path / "run", *options)])
    assert main() == status
    out, error = capfd.readouterr()
    assert message in error
    assert len(error.splitlines()) == 1
    assert out == ""


def test_a_command_that_fails_ends_in_one_line_and_a_status(tmp_path: Path) -> None:
    options = ("--learning-rate", "1e30", "--optimiser", "sgd")
    done = subprocess.run(command(tmp_path / "run", *options), env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "no number any more" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_options_are_checked_without_loading_torch() -> None:
    code = "import sys, imagekin.training.options, imagekin.training.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def test_settings_survive_the_way_to_disk_and_back(tmp_path: Path) -> None:
    settings = quick(tmp_path, weights=Path("w.pth"))
    (tmp_path / CONFIG_FILE).write_text(settings.to_json())
    assert TrainSettings.load(tmp_path) == settings
    (tmp_path / CONFIG_FILE).write_text("{")
    with pytest.raises(InvalidArgumentError, match="damaged"):
        TrainSettings.load(tmp_path)
