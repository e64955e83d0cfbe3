"""What a foreign graph holds is noticed: class scores, the features before them, and a normalisation of its own."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from imagekin.cli.main import run
from imagekin.encoder.adoption.adopt import Adoption, AdoptSettings
from imagekin.encoder.artifact import read_metadata
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import InvalidArgumentError
from tests.encoder.adoption.test_adopt import MEAN, STD, noise
from tests.foreign import ConvNet, export


class Classifier(nn.Module):
    """A classifier of 1,000 classes, with or without softmax."""

    def __init__(self, softmax: bool, classes: int = 1000) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = ConvNet(24)
        self.last = nn.Linear(24, classes)
        self.softmax = softmax

    def forward(self, image: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, C]."""
        scores: Tensor = self.last(self.features(image))
        return scores.softmax(1) if self.softmax else scores


class Normalised(nn.Module):
    """An encoder that normalises pixels from 0 to `most` itself."""

    def __init__(self, most: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = ConvNet(24)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * most)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * most)

    def forward(self, image: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, D]."""
        return self.body((image - self.mean) / self.std)  # type: ignore[no-any-return, operator]


@pytest.mark.parametrize(("softmax", "classes"), [(True, 1000), (False, 1000), (True, 37)])
def test_scores_of_classes_are_refused_and_the_features_before_them_taken(
    softmax: bool, classes: int, tmp_path: Path
) -> None:
    module = Classifier(softmax, classes)
    path = export(module, tmp_path / "model.onnx")
    with pytest.raises(InvalidArgumentError, match=r"looks like s.* classes.*--output: .* \[N, 24\]") as refused:
        Adoption(path, AdoptSettings(MEAN, STD)).write(noise(), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
    name = next(part for part in str(refused.value).split("--output: ")[1].split(", ") if "[N" in part).split(" ")[0]
    adopted = Adoption(path, AdoptSettings(MEAN, STD, output=name)).write(noise(), tmp_path / "out.onnx")
    assert adopted.metadata.dim == 24
    scaled = torch.tensor((noise() / 255.0 - MEAN) / STD, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = nn.functional.normalize(module.eval().features(scaled), dim=1).numpy()
    assert np.abs(Encoder.open(adopted.model).embed_pixels(noise()) - wanted).max() < 1e-4


def test_scores_that_are_asked_for_by_name_are_taken(tmp_path: Path) -> None:
    path = export(Classifier(softmax=False), tmp_path / "model.onnx")
    (output,) = (entry.name for entry in onnx.load(path).graph.output)
    adopted = Adoption(path, AdoptSettings(MEAN, STD, output=output)).write(noise(), tmp_path / "out.onnx")
    assert adopted.metadata.dim == 1000


@pytest.mark.parametrize("most", [1, 255])
def test_a_graph_that_normalises_is_given_plain_pixels_and_said_so(
    most: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Normalised(most)
    path = export(module, tmp_path / "model.onnx")
    assert Adoption(path, AdoptSettings(MEAN, STD)).own_range == most
    assert run(["adopt", str(path), "--out", str(tmp_path / "out.onnx"), "--size", "32"]) == 0
    assert f"normalises its input itself; it is given pixels from 0 to {most}" in capsys.readouterr().err
    pixels = noise(3)
    with torch.no_grad():
        plain = torch.tensor(pixels * (most / 255), dtype=torch.float32).permute(0, 3, 1, 2)
        wanted = nn.functional.normalize(module.eval()(plain), dim=1).numpy()
    assert np.abs(Encoder.open(tmp_path / "out.onnx").embed_pixels(pixels) - wanted).max() < 1e-4


def test_a_choice_that_nobody_made_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = export(ConvNet(), tmp_path / "model.onnx")
    assert Adoption(path, AdoptSettings(MEAN, STD)).own_range is None
    assert run(["adopt", str(path), "--out", str(tmp_path / "out.onnx"), "--size", "32"]) == 0
    assert "normalised as --preset imagenet says" in capsys.readouterr().err
    assert run(["adopt", str(path), "--out", str(tmp_path / "out.onnx"), "--size", "32", "--preset", "clip"]) == 0
    assert capsys.readouterr().err == ""
    assert read_metadata(tmp_path / "out.onnx").preprocess.interpolation == "bicubic"


class Window(nn.Module):
    """Tells greys apart as long as they lie between 0.6 and 1, or -1 and -0.6: pixels from -1 to 1 do."""

    def forward(self, image: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, 3]."""
        grey = image.mean((1, 2, 3))
        bright, dark = grey.clamp(0.6, 1.0) - 0.6, (-grey).clamp(0.6, 1.0) - 0.6
        return torch.stack([bright, dark, 0.1 + 0 * grey], 1)


def test_labelled_images_choose_the_preset_that_nobody_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for name, grey in {"black": 10, "dark": 40, "light": 215, "white": 245}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            pixels = (grey + random.integers(-9, 10, (16, 16, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    path, out = export(Window(), tmp_path / "model.onnx"), tmp_path / "out.onnx"
    command = ["adopt", str(path), "--out", str(out), "--size", "32", "--images", str(tmp_path / "photos")]
    assert run(command) == 0
    said = capsys.readouterr().err
    assert "among 16 of the images are of one class by preset: half 100.0%, " in said
    assert all(f"{name} " in said for name in ("imagenet", "clip", "unit", "bytes"))
    assert said.endswith("model.onnx is adopted with --preset half\n")
    found = read_metadata(out)
    assert run([*command, "--preset", "half"]) == 0
    assert read_metadata(out).space == found.space
    assert capsys.readouterr().err == ""
