"""A run goes on with the images that it was started with, and says which are others."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.training.data.identity import DATA_FILE, Identity
from imagekin.training.loop.run_folder import open_run
from imagekin.training.loop.trainer import pretrain
from imagekin.training.settings import PROVENANCE_FILE, TrainSettings
from tests.disks import small_disk

SIZE = 16
SETTINGS = {"image_size": SIZE, "batch_size": 4, "threads": 1, "epochs": 1, "warmup_epochs": 0.0, "device": "cpu"}


def write_images(root: Path, classes: str = "abc", each: int = 4) -> Path:
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(each):
            random = np.random.default_rng(100 * place + number)
            pixels = random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def settings(tmp_path: Path) -> TrainSettings:
    return TrainSettings(data=str(tmp_path / "images"), out=tmp_path / "run", **SETTINGS)  # type: ignore[arg-type]


@pytest.fixture
def started(tmp_path: Path) -> TrainSettings:
    """Train on twelve images for an epoch of one that is to go on."""
    write_images(tmp_path / "images")
    pretrain(settings(tmp_path))
    return settings(tmp_path)


@pytest.mark.usefixtures("unexported")
def test_a_run_goes_on_with_the_same_images_only(started: TrainSettings, tmp_path: Path) -> None:
    images = tmp_path / "images"
    pretrain(started, resume=True)

    (images / "a").rename(images / "zz-a")
    with pytest.raises(InvalidArgumentError, match=r"class a is gone; class zz-a is new; 4 images renamed \("):
        pretrain(started, resume=True)
    (images / "zz-a").rename(images / "a")

    shutil.move(images / "c", tmp_path / "elsewhere")
    with pytest.raises(InvalidArgumentError, match=r"class c is gone; 4 images gone \(c/0.png, c/1.png, c/2.png, …\)"):
        pretrain(started, resume=True)
    shutil.move(tmp_path / "elsewhere", images / "c")

    shutil.copy(images / "a" / "0.png", images / "a" / "1.png")
    with pytest.raises(InvalidArgumentError, match=r"1 image changed \(a/1.png\)"):
        pretrain(started, resume=True)
    # Nothing of the refused tries is left: the run is as it was.
    recorded = Identity.read(started.out)
    assert recorded is not None
    assert {label for *_, label in recorded.images} == {"a", "b", "c"}
    pretrain(started, overwrite=True)
    recorded = Identity.read(started.out)
    assert recorded is not None
    assert recorded.images[0][1] == recorded.images[1][1]


@pytest.mark.usefixtures("unexported")
def test_a_run_without_a_record_of_its_images_goes_on_and_says_so(
    started: TrainSettings, caplog: pytest.LogCaptureFixture
) -> None:
    (started.out / DATA_FILE).write_bytes(b"damaged")
    pretrain(started, resume=True)
    assert "nobody knows if its images have changed" in caplog.text
    assert Identity.read(started.out) is not None


def test_images_that_changed_leave_checkpoint_and_metrics_alone(started: TrainSettings) -> None:
    before = {path.name: path.read_bytes() for path in started.out.iterdir() if path.is_file()}
    others = Identity((("x", "00", "a"),))
    with (
        pytest.raises(InvalidArgumentError, match="1 image new"),
        open_run(started, resume=True, overwrite=False, data=others),
    ):
        pass
    assert {path.name: path.read_bytes() for path in started.out.iterdir() if path.is_file()} == before


@pytest.mark.usefixtures("unexported")
def test_a_run_remembers_its_commands_and_its_machine(started: TrainSettings) -> None:
    pretrain(started, resume=True)
    content = json.loads((started.out / PROVENANCE_FILE).read_text())
    assert len(content["commands"]) == 2
    assert content["machine"]["cores"] >= 1
    assert {"processor", "system", "python", "torch", "imagekin"} <= set(content["machine"])


def test_a_disk_that_fills_up_later_is_told_by_the_runs_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(FailedPreconditionError, match=r"run cannot be written: No space left .* --resume"),
        open_run(settings(tmp_path), resume=False, overwrite=False),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    with small_disk(tmp_path / "disk", 1) as disk:
        command = ["train", str(tmp_path / "images"), "--out", str(disk / "run"), "--image-size", str(SIZE)]
        done = subprocess.run(
            [sys.executable, "-m", "imagekin", *command, "--epochs", "1", "--batch-size", "4", "--threads", "1"],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("imagekin:")]
    assert "No space left on device" in line
    assert "a bug" not in line
    assert "Traceback" not in done.stderr
