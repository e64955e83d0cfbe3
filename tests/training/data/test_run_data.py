"""Test images that were trained on are named before the training, and no score counts them unless asked."""

import json
import shutil
from pathlib import Path

import pytest

from imagekin.errors import InvalidArgumentError
from imagekin.sources.ignored import NO_IMAGE, SYSTEM
from imagekin.training.data.run_data import load_data
from imagekin.training.loop.trainer import pretrain
from imagekin.training.settings import PAGE_FILE, REPORT_FILE, TrainSettings
from tests.training.loop.test_run_folder import SETTINGS, write_images


def run(tmp_path: Path, **changes: object) -> TrainSettings:
    values = {**SETTINGS, "test": str(tmp_path / "test"), **changes}
    return TrainSettings(data=str(tmp_path / "train"), out=tmp_path / "run", **values)  # type: ignore[arg-type]


@pytest.fixture
def leaked(tmp_path: Path) -> Path:
    """Write 12 training images, and 6 test images of which 3 are copies under other names."""
    write_images(tmp_path / "all", each=5)
    for name in "abc":
        for number in range(5):
            part = "train" if number < 4 else "test"
            target = tmp_path / part / name / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "all" / name / f"{number}.png", target)
        shutil.copy(tmp_path / "train" / name / "0.png", tmp_path / "test" / name / "copy.png")
    return tmp_path


def test_copies_are_left_out_and_report_and_page_say_so(leaked: Path, caplog: pytest.LogCaptureFixture) -> None:
    (leaked / "train" / "notes.txt").write_text("no image")
    report = pretrain(run(leaked), page=True).to_json()
    assert (report["failed_count"], report["ignored"]) == (0, [{"suffix": ".txt", "reason": NO_IMAGE, "count": 1}])
    assert "3 of 6 test images are training images, too (a/copy.png is a/0.png" in caplog.text
    figures = json.loads((leaked / "run" / REPORT_FILE).read_text())
    assert (figures["test_compared"], figures["test_copies"], figures["test_left_out"]) == (6, 3, 3)
    assert figures["test_count"] == 3
    assert figures["copies"][0] == {"test": "a/copy.png", "train": "a/0.png"}
    page = (leaked / "run" / PAGE_FILE).read_text()
    assert "a/copy.png is a/0.png" in page
    assert "the scores leave them out" in page
    assert "not trained on" not in page
    assert f"1 .txt ({NO_IMAGE})" in page


def test_files_that_are_left_out_are_counted_also_when_the_images_are_in_the_cache(leaked: Path) -> None:
    (leaked / "train" / "a" / "bad.png").write_bytes(b"bad")
    shutil.copytree(leaked / "train" / "a", leaked / "train" / "@eaDir")
    expected = {
        "failed_count": 1,
        "ignored": [{"suffix": ".png", "reason": SYSTEM, "count": 5}],
    }
    for _ in range(2):
        train, _ = load_data(run(leaked, data_on="cache", cache_dir=leaked / "cache", test=""))
        assert train.left_out_json() == expected


def test_copies_are_counted_when_asked_for(leaked: Path) -> None:
    pretrain(run(leaked, allow_overlap=True), page=True)
    figures = json.loads((leaked / "run" / REPORT_FILE).read_text())
    assert (figures["test_count"], figures["test_copies"], figures["test_left_out"]) == (6, 3, 0)
    assert "the scores count them all the same" in (leaked / "run" / PAGE_FILE).read_text()


@pytest.mark.parametrize("crop_from", [0, 24])
def test_a_test_set_of_nothing_but_copies_is_refused_before_the_training(leaked: Path, crop_from: int) -> None:
    for name in "abc":
        (leaked / "test" / name / "4.png").unlink()
    with pytest.raises(InvalidArgumentError, match="3 of 3 test images are training images"):
        pretrain(run(leaked, crop_from=crop_from))
    assert not (leaked / "run").exists()


@pytest.mark.parametrize(
    ("changes", "each", "named"),
    [
        ({"batch_size": 1}, 4, "--batch-size 1 makes batches of one image"),
        ({"objective": "rotation", "views": "upright", "batch_size": 1}, 4, "batches of one image"),
        ({"sampler": "pk", "images_per_class": 4, "batch_size": 4}, 4, "holds a single class"),
        ({"objective": "simclr", "num_views": 1}, 4, "give --num-views 2"),
        ({"num_views": 1}, 1, "has nothing to bring together"),
        ({"objective": "triplet", "num_views": 1}, 1, "has nothing to bring together"),
        ({"objective": "n-pairs", "num_views": 1}, 1, "has nothing to bring together"),
    ],
)
def test_a_run_that_cannot_learn_is_refused(tmp_path: Path, changes: dict[str, object], each: int, named: str) -> None:
    write_images(tmp_path / "train", each=each)
    with pytest.raises(InvalidArgumentError, match=named):
        pretrain(run(tmp_path, test="", **changes))
    assert not (tmp_path / "run").exists()


def test_a_score_that_cannot_be_made_is_refused_before_the_training(leaked: Path) -> None:
    for name in "bc":
        shutil.rmtree(leaked / "train" / name)
    with pytest.raises(InvalidArgumentError, match=r"are of one class \(a\), so that no score"):
        load_data(run(leaked, objective="simclr"))
