"""A run's report shows what the model did, needs nothing beside itself, and says no more than the scores do."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from imagekin.encoder import artifact
from imagekin.encoder.metadata import Preprocess
from imagekin.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from imagekin.training.data.identity import Identity
from imagekin.training.data.images import ImageSet
from imagekin.training.evaluation.evaluate import knn_accuracy
from imagekin.training.report import charts
from imagekin.training.report.details import collect, read_curves
from imagekin.training.report.options import compare_command, report_command
from imagekin.training.report.page import write_report
from imagekin.training.settings import TrainSettings
from tests.artifacts import tiny_artifact, tiny_graph, tiny_metadata
from tests.e2e.pictures import class_folders

SIZE = 8
NAMES = ("blue <b>&amp;", "green $x$", "red")


def images(name: str, per_class: int, seed: int, noise: int = 90) -> ImageSet:
    """Return noisy images of three colours, one colour a class."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    pixels = random.integers(0, noise, (len(labels), SIZE, SIZE, 3))
    pixels[np.arange(len(labels)), :, :, 2 - labels] += 120
    keys = tuple(f"{name}/{row}.png" for row in range(len(labels)))
    return ImageSet(pixels.astype(np.uint8), labels, NAMES, keys, name, Preprocess(SIZE, SIZE, "squash"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    tiny_artifact(folder / "model.onnx", size=SIZE)
    (folder / "config.json").write_text(TrainSettings(data="colours", out=folder, image_size=SIZE).to_json())
    (folder / "report.json").write_text(json.dumps({"knn_accuracy": 0.987, "dim": 16, "map_at_r": None}))
    lines = ({"epoch": epoch, "loss": 3.0 / epoch, "learning_rate": 0.1, "seconds": 1.0} for epoch in (1, 2, 3))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class References(HTMLParser):
    """Collects what a page would load, run or go to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what this tag refers to."""
        if tag in ("script", "link", "iframe", "object", "base", "a"):
            self.found.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and not (value or "").startswith(("data:image/", "#")):
                self.found.append(f"{name}={value}")


def test_the_page_needs_nothing_beside_itself_and_escapes_what_it_shows(run: Path) -> None:
    text = write_report(run, images("train", 20, 0), images("test", 8, 1)).read_text()
    references = References()
    references.feed(text)
    assert references.found == []
    assert "98.70%" in text
    assert "<b>" not in text
    assert "blue &lt;b&gt;" in text
    assert not re.search(r"url\((?!#)|@import", text)


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    sets = images("train", 20, 0), images("test", 8, 1)
    assert write_report(run, *sets).read_text() == write_report(run, *sets).read_text()


def test_confusion_counts_every_test_image_once_and_agrees_with_the_accuracy(run: Path) -> None:
    from imagekin.encoder.runtime.session import Encoder

    train, test = images("train", 20, 0, noise=250), images("test", 15, 1, noise=250)
    details = collect(run / "model.onnx", read_curves(run), train, test)
    encoder = Encoder.open(run / "model.onnx")
    accuracy = knn_accuracy(
        encoder.embed_pixels(train.pixels), train.labels, encoder.embed_pixels(test.pixels), test.labels
    )
    assert details.confusion.sum(axis=1).tolist() == [15, 15, 15]
    assert details.confusion.trace() / 45 == pytest.approx(accuracy)
    assert 0 < accuracy < 1
    assert sum(count for *_, count in details.most_confused()) == 45 - details.confusion.trace()


def test_the_neighbours_shown_are_the_nearest_and_mistakes_are_among_them(run: Path) -> None:
    from imagekin.encoder.runtime.session import Encoder

    train, test = images("train", 20, 0, noise=250), images("test", 15, 1, noise=250)
    details = collect(run / "model.onnx", read_curves(run), train, test)
    encoder = Encoder.open(run / "model.onnx")
    cosines = encoder.embed_pixels(test.pixels) @ encoder.embed_pixels(train.pixels).T
    for strip in details.strips:
        assert strip.similarities == pytest.approx(np.sort(cosines[strip.query])[::-1][:8], abs=1e-5)
        assert strip.neighbours[0] == cosines[strip.query].argmax()
    wrong = [strip for strip in details.strips if strip.predicted != test.labels[strip.query]]
    assert 0 < len(wrong) <= len(details.strips) / 2


def test_details_are_the_same_as_json(run: Path) -> None:
    write_report(run, images("train", 20, 0), images("test", 8, 1))
    details = json.loads((run / "details.json").read_text())
    assert [line["epoch"] for line in details["curves"]] == [1, 2, 3]
    assert sum(map(sum, details["confusion"])) == len(details["map"]) == 24
    assert {point["label"] for point in details["map"]} == set(NAMES)
    assert details["neighbours"][0]["neighbours"][0]["key"].startswith("train/")


def test_a_map_keeps_groups_together(run: Path) -> None:
    train, test = images("train", 20, 0, noise=20), images("test", 30, 1, noise=20)
    details = collect(run / "model.onnx", read_curves(run), train, test)
    distances = np.linalg.norm(details.map_points[:, None] - details.map_points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    labels = test.labels[details.map_rows]
    assert np.mean(labels[distances.argmin(axis=1)] == labels) > 0.95


@pytest.mark.parametrize("per_class", [1, 2])
def test_a_handful_of_images_is_enough(run: Path, per_class: int) -> None:
    assert write_report(run, images("train", 1, 0), images("test", per_class, 1)).exists()


def test_an_untrained_run_has_a_report_too(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert "random weights" in write_report(run, images("train", 2, 0), images("test", 2, 1)).read_text()


def test_classes_too_many_to_name_are_still_drawn() -> None:
    matrix = np.eye(200, dtype=np.int64)
    names = [f"class {number}" for number in range(200)]
    drawn = charts.confusion(matrix, names)
    for name in names:
        assert drawn.count(f"</title>{name}</text>") == 2, "each class is named on both axes"
        assert f"<title>{name} → {name}: 1 (100%)</title>" in drawn
    points = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    shown = charts.embedding_map(points, np.arange(200), names, [f"caption {name}" for name in names], ["data:,"] * 200)
    assert shown.count('class="dot"') == shown.count("<li>") == 200
    assert all(f">caption {name}<" in shown for name in names)


def test_names_of_every_script_are_text_of_the_page(run: Path) -> None:
    names = ("苹果", "تفاح", "яблоко")
    train, test = (
        dataclasses.replace(images(name, 8, seed), class_names=names) for seed, name in enumerate(("a", "b"))
    )
    text = write_report(run, train, test).read_text(encoding="utf-8")
    for name in names:
        # On both axes of the matrix and in the map's legend.
        assert text.count(f">{name}<") >= 3
        assert text.count(f"</title>{name}</text>") == 2


def test_points_of_the_map_show_their_images(run: Path) -> None:
    text = write_report(run, images("train", 8, 0), images("test", 8, 1)).read_text()
    assert text.count('class="dot"') == text.count('class="tip"><img src="data:image/jpeg;base64,') == 24
    assert "green $x$ · test/8.png" in text


def test_the_page_says_where_it_is_from_and_claims_nothing_that_was_not_checked(run: Path) -> None:
    machine = {"processor": "Abacus 9", "cores": 2}
    (run / "provenance.json").write_text(json.dumps({"commands": ["imagekin train <colours>"], "machine": machine}))
    scores = {"per_class": [class_score("red", 0.5), class_score("blue <b>", 0.25)], "finished": False}
    counts = {"epochs_done": 3, "epochs_planned": 20, "knn_macro_accuracy": 0.375}
    (run / "report.json").write_text(json.dumps(scores | counts))
    text = write_report(run, images("train", 8, 0), images("test", 8, 1)).read_text()
    for part in ("Abacus 9", "imagekin train &lt;colours&gt;", "37.50%", "unfinished: 3 of 20 epochs", "temperature"):
        assert part in text
    assert text.index("blue &lt;b&gt;") < text.index(">red<"), "the worst class comes first"
    assert "Nobody compared the test images with the training images" in text
    assert "not trained on" not in text


def test_scores_of_other_images_are_made_anew(run: Path) -> None:
    train, test = images("train", 20, 0), images("test", 8, 1)
    known = {"data_id": Identity.of(train).id, "test_id": Identity.of(test).id, "knn_accuracy": 0.123}
    (run / "report.json").write_text(json.dumps(known))
    assert "12.30%" in write_report(run, train, test).read_text()
    other = write_report(run, train, images("others", 5, 7)).read_text()
    assert "12.30%" not in other
    assert "mean over classes" in other


def class_score(name: str, recall: float) -> dict[str, object]:
    figures = {"knn_recall": recall, "knn_precision": None, "linear_recall": recall, "linear_precision": 1.0}
    return {"name": name, "images": 8, **figures}


def test_a_run_without_a_model_and_images_of_other_rules_are_refused_in_words(run: Path) -> None:
    train, test = images("train", 2, 0), images("test", 2, 1)
    other = ImageSet(test.pixels, test.labels, NAMES, test.keys, "test", Preprocess(SIZE, SIZE, "crop"))
    with pytest.raises(FailedPreconditionError, match="other rules"):
        collect(run / "model.onnx", read_curves(run), train, other)
    (run / "model.onnx").unlink()
    with pytest.raises(NotFoundError, match="finish the run"):
        write_report(run, train, test)


def test_any_artifact_has_a_report_and_can_be_compared(tmp_path: Path) -> None:
    train, test = (
        class_folders(tmp_path / "train", per_class=9),
        class_folders(tmp_path / "test", per_class=4, first=50),
    )
    models = []
    for seed in (1, 2):
        graph = tiny_graph(seed=seed)
        metadata = dataclasses.replace(tiny_metadata(graph), training={"crop": seed})
        models.append(artifact.write(graph, metadata, tmp_path / f"{seed}.onnx"))
    made = run_command("report", models[0], "--data", train, "--test", test)
    page = tmp_path / "1-report.html"
    assert str(page) in made.stdout
    text = page.read_text(encoding="utf-8")
    for part in ("The artifact 1.onnx", "crop", "blue", "All 12 test images were compared", "kNN accuracy"):
        assert part in text
    plain = json.loads(run_command("compare", *models, "--json").stdout)
    assert [each["settings"] for each in plain["runs"]] == [{"crop": 1}, {"crop": 2}]
    scored = json.loads(run_command("compare", *models, "--data", train, "--test", test, "--json").stdout)
    assert all(each["knn_accuracy"] > 0.8 for each in scored["runs"])
    with pytest.raises(InvalidArgumentError, match="--data"):
        run_command("report", models[0])


def run_command(*arguments: object) -> Result:
    app = typer.Typer()
    app.command("report")(report_command)
    app.command("compare")(compare_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
