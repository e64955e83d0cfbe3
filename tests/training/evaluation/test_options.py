"""`imagekin evaluate` and `imagekin export` as they are typed: a table for people, one JSON line for programs."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from imagekin.encoder.artifact import read_metadata, write
from imagekin.encoder.metadata import Preprocess
from imagekin.errors import InvalidArgumentError
from imagekin.training.data.identity import Identity
from imagekin.training.data.images import load_images
from imagekin.training.evaluation.options import evaluate_command, export_command
from imagekin.training.loop.checkpoint import Checkpoint, Position, save
from imagekin.training.models.encoders import Normalisation, build_encoder
from imagekin.training.settings import CHECKPOINT_FILE, CONFIG_FILE, TrainSettings
from tests.artifacts import tiny_artifact, tiny_graph, tiny_metadata
from tests.e2e.pictures import class_folders

app = typer.Typer()
app.command("evaluate")(evaluate_command)
app.command("export")(export_command)


def run(*arguments: object) -> Result:
    """Type a command; errors that the real command prints in one line are raised."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a model that projects 8-pixel images at random."""
    return tiny_artifact(tmp_path / "model.onnx", dim=64)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Return the folder of a run on digits that was stopped before its first step."""
    torch.manual_seed(0)
    folder = tmp_path / "run"
    folder.mkdir()
    settings = TrainSettings(data="digits", out=folder, image_size=8)
    (folder / CONFIG_FILE).write_text(settings.to_json())
    weights = build_encoder("tiny", 8).state_dict()
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    save(Checkpoint(settings, normalisation, (), "digits", Position(), weights, {}, {}, {}), folder / CHECKPOINT_FILE)
    return folder


def test_evaluate_answers_in_json_on_its_last_line(model: Path) -> None:
    result = run("evaluate", model, "--train", "digits", "--test", "digits", "--json")
    assert result.exit_code == 0
    figures = json.loads(result.stdout.splitlines()[-1])
    # A random projection keeps distances well enough to tell most digits apart.
    assert 0.9 < figures["knn_accuracy"] <= 1
    assert 0.8 < figures["linear_accuracy"] <= 1
    assert 0.8 < figures["recall_at_1"] <= 1
    assert 0 < figures["map_at_r"] < figures["recall_at_1"]
    assert (figures["train_count"], figures["test_count"], figures["class_count"]) == (1437, 360, 10)
    assert figures["model"] == str(model)
    assert figures["embeddings_per_second"] > 0


def test_evaluate_shows_a_table_to_people(model: Path) -> None:
    result = run("evaluate", model, "--train", "digits", "--test", "digits", "--k", 1)
    assert result.exit_code == 0
    for label in ("kNN accuracy", "linear probe accuracy", "recall@1", "MAP@R", "embeddings per second"):
        assert label in result.stdout


def test_evaluate_answers_everything_else_that_it_is_asked(model: Path) -> None:
    extras = (
        "--calibration",
        "--robustness",
        "--corruptions",
        "fog,contrast",
        "--baseline",
        model,
        "--few-shot",
        "5x1",
    )
    result = run("evaluate", model, "--train", "digits", "--test", "digits", *extras, "--json")
    figures = json.loads(result.stdout.splitlines()[-1])
    assert 0 < figures["knn_ece_scaled"] <= figures["knn_ece"] + 0.05 < 0.5
    assert 0 < figures["linear_ece"] < 0.5
    assert set(figures["corruptions"]) == {"fog", "contrast"}
    assert [len(figures["corruptions"]["fog"][way]) for way in ("knn", "linear")] == [5, 5]
    assert figures["knn_corrupted"] < figures["knn_accuracy"]
    # A model is its own equal.
    assert figures["knn_mce"] == figures["linear_mce"] == 1
    assert figures["baseline"] == str(model)
    task = figures["few_shot"]["5x1"]
    assert 0.3 < task["accuracy"] < 1
    assert 0 < task["standard_error"] < 0.02

    table = run("evaluate", model, "--train", "digits", "--test", "digits", "--few-shot", "5x1", "--few-shot", "2x5")
    assert "few-shot 5x1" in table.stdout
    assert "few-shot 2x5" in table.stdout


def test_few_shot_alone_needs_no_training_images_and_stays_within_folders(model: Path, tmp_path: Path) -> None:
    for alphabet in ("a", "b"):
        for character in range(3):
            folder = tmp_path / "images" / alphabet / f"{character}"
            folder.mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (8, 8), (80 * character, number, 100 * (alphabet == "b"))).save(
                    folder / f"{number}.png"
                )
    images = tmp_path / "images"
    result = run("evaluate", model, "--test", images, "--few-shot", "3x1", "--few-shot-within", "--json")
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["few_shot"]["3x1"]["episodes"] == 1000
    assert "knn_accuracy" not in figures
    with pytest.raises(InvalidArgumentError, match="one group"):
        run("evaluate", model, "--test", images, "--few-shot", "4x1", "--few-shot-within")
    with pytest.raises(InvalidArgumentError, match="--train"):
        run("evaluate", model, "--test", images)
    with pytest.raises(InvalidArgumentError, match="--few-shot-within"):
        run("evaluate", model, "--test", "digits", "--few-shot", "4x1", "--few-shot-within")
    with pytest.raises(InvalidArgumentError, match="--robustness"):
        run("evaluate", model, "--train", "digits", "--test", "digits", "--corruptions", "fog")
    with pytest.raises(InvalidArgumentError, match="gaussian_noise"):
        run("evaluate", model, "--train", "digits", "--test", "digits", "--robustness", "--corruptions", "rain")


def test_evaluate_refuses_to_ask_about_the_images_that_answer(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (50 * number, 10, 10)).save(folder / f"{number}.png")
    images = tmp_path / "images"
    with pytest.raises(InvalidArgumentError, match="6 of 6 test images are training images"):
        run("evaluate", model, "--train", images, "--test", images)


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(8, 8, interpolation="bicubic"),
        Preprocess(8, 8, "pad", background=(0, 0, 0)),
        Preprocess(8, 8, "crop", crop_fraction=0.75),
        Preprocess(4, 16),
    ],
)
def test_evaluate_prepares_images_as_the_model_asks(tmp_path: Path, preprocess: Preprocess) -> None:
    graph = tiny_graph(dim=64)
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = preprocess.height
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = preprocess.width
    metadata = dataclasses.replace(tiny_metadata(graph, dim=64), preprocess=preprocess)
    model = write(graph, metadata, tmp_path / "model.onnx")
    result = run("evaluate", model, "--train", "digits", "--test", "digits", "--json")
    assert json.loads(result.stdout)["knn_accuracy"] > 0.8


def test_export_writes_the_model_and_reports(trained: Path) -> None:
    result = run("export", trained, "--json")
    assert result.exit_code == 0
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["model"] == str(trained / "model.onnx")
    assert figures["onnx_max_abs_diff"] <= 1e-4
    assert figures["onnx_knn_agreement"] >= 0.999
    assert (trained / "model.onnx").is_file()
    again = run("evaluate", trained / "model.onnx", "--train", "digits", "--test", "digits", "--json")
    assert json.loads(again.stdout)["knn_accuracy"] == figures["knn_accuracy"]


def test_export_shows_a_table_to_people(trained: Path, tmp_path: Path) -> None:
    moved = class_folders(tmp_path / "pictures", per_class=4, side=8)
    with pytest.raises(InvalidArgumentError, match="12 of 12 test images are training images"):
        run("export", trained, "--data", moved, "--test", moved, "--no-report")
    table = run("export", trained, "--data", moved, "--test", moved, "--no-report", "--allow-overlap")
    assert table.exit_code == 0
    assert "largest difference" in table.stdout


def test_an_unfinished_run_is_called_so_by_export_and_report(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    figures = json.loads(run("export", trained, "--json").stdout.splitlines()[-1])
    assert (figures["finished"], figures["epochs_done"], figures["epochs_planned"]) == (False, 0, 100)
    assert "unfinished: 0 of 100 epochs" in caplog.text
    assert "unfinished: 0 of 100 epochs" in (trained / "report.html").read_text()


def test_a_head_is_scored_with_and_without_images_to_compare_with(model: Path) -> None:
    assert run("export", model, "--head", "linear", "--images", "digits").exit_code == 0
    headed = model.with_name("model-linear.onnx")
    alone = json.loads(run("evaluate", headed, "--test", "digits", "--json").stdout.splitlines()[-1])
    assert alone["head_accuracy"] > 0.5
    assert (alone["head_count"], alone["head_unknown_count"]) == (360, 0)
    assert alone["head_known_rejected"] == pytest.approx(0.05, abs=0.05)
    assert alone["head_unknown_auroc"] is None
    assert "knn_accuracy" not in alone
    beside = json.loads(
        run("evaluate", headed, "--train", "digits", "--test", "digits", "--json").stdout.splitlines()[-1]
    )
    assert beside["head_accuracy"] == alone["head_accuracy"]
    assert beside["knn_accuracy"] > 0.9
    with pytest.raises(InvalidArgumentError, match="a model with a head do without"):
        run("evaluate", model, "--test", "digits")


def test_a_head_is_not_scored_on_images_that_say_nothing_of_it(model: Path, tmp_path: Path) -> None:
    images, others = tmp_path / "images", tmp_path / "others"
    class_folders(images, per_class=12, side=8)
    assert run("export", model, "--head", "linear", "--images", images).exit_code == 0
    headed = model.with_name("model-linear.onnx")
    for place, folder in enumerate(sorted(images.iterdir())):
        shutil.copytree(folder, others / f"other{place}")
    with pytest.raises(InvalidArgumentError, match=r"no images of the classes .* \(--train\)"):
        run("evaluate", headed, "--test", others)
    # The run beside the model knows which images it was trained on.
    Identity.of(load_images(str(images), split="all", preprocess=read_metadata(model).preprocess)).write(tmp_path)
    with pytest.raises(InvalidArgumentError, match="trained on"):
        run("evaluate", headed, "--test", images)
    told = run("evaluate", headed, "--test", images, "--allow-overlap", "--json")
    assert json.loads(told.stdout.splitlines()[-1])["test_copies"] > 0


def test_unknown_classes_are_told_from_known_ones_and_leave_the_scores_alone(model: Path, tmp_path: Path) -> None:
    known, every = tmp_path / "known", tmp_path / "every"
    class_folders(known, per_class=12, side=8)
    shutil.rmtree(known / "red")
    class_folders(every, per_class=9, side=8, first=100)
    told = ("--train", known, "--test", every)
    with pytest.raises(InvalidArgumentError, match="--unknown"):
        run("evaluate", model, *told)
    figures = json.loads(run("evaluate", model, *told, "--unknown", "--json").stdout.splitlines()[-1])
    assert (figures["unknown_count"], figures["test_count"], figures["class_count"]) == (9, 18, 2)
    assert figures["knn_unknown_auroc"] == figures["knn_unknown_rejected"] == 1  # no red is as near as a blue or green
    assert figures["knn_known_rejected"] < 0.5
    shutil.rmtree(every / "red")
    alone = json.loads(run("evaluate", model, *told, "--json").stdout.splitlines()[-1])
    assert all(figures[name] == alone[name] for name in ("knn_accuracy", "linear_accuracy", "map_at_r"))
    with pytest.raises(InvalidArgumentError, match="none of others"):
        run("evaluate", model, *told, "--unknown")
