"""The encoders have the shapes, names and sizes that weight files and export rely on."""

import pytest
import torch
from torch import nn

from imagekin.errors import InvalidArgumentError
from imagekin.training.models.encoders import (
    Normalisation,
    build_encoder,
    encoder_names,
    load_state,
    normalise,
    stem_of,
)


@pytest.mark.parametrize("name", encoder_names())
@pytest.mark.parametrize("size", [16, 32, 33, 72])
def test_features_have_the_promised_size_and_depend_on_each_image_alone(name: str, size: int) -> None:
    encoder = build_encoder(name, size).eval()
    images = torch.randn(3, 3, size, size)
    with torch.inference_mode():
        features = encoder(images)
        alone = encoder(images[1:2])
    assert features.shape == (3, encoder.feature_dim)
    torch.testing.assert_close(features[1:2], alone, rtol=1e-3, atol=1e-4)


# What torchvision publishes: tensors and numbers of weights, with the classifier's 1,000 classes.
@pytest.mark.parametrize(
    ("name", "tensors", "weights", "features"),
    [("resnet18", 122, 11_689_512, 512), ("resnet50", 320, 25_557_032, 2048)],
)
def test_resnets_have_torchvisions_names_and_sizes(name: str, tensors: int, weights: int, features: int) -> None:
    encoder = build_encoder(name, 224)
    state = encoder.state_dict()
    assert encoder.feature_dim == features
    assert len(state) + 2 == tensors
    assert sum(parameter.numel() for parameter in encoder.parameters()) + features * 1000 + 1000 == weights
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    last = {"resnet18": "layer4.1.conv2.weight", "resnet50": "layer4.2.conv3.weight"}[name]
    assert {last, "layer2.0.downsample.0.weight", "layer2.0.downsample.1.running_var", "bn1.bias"} <= set(state)
    assert ("layer1.0.downsample.0.weight" in state) == (name == "resnet50")


def test_the_stride_of_a_bottleneck_is_in_its_3x3_convolution() -> None:
    convolution = build_encoder("resnet50", 224).get_submodule("layer2.0.conv2")
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.stride == (2, 2)


def test_small_images_get_the_small_stem() -> None:
    assert stem_of(build_encoder("resnet18", 64).state_dict()) == "small"
    assert stem_of(build_encoder("resnet18", 65).state_dict()) == "large"
    assert stem_of(build_encoder("resnet18", 32, stem="large").state_dict()) == "large"
    assert stem_of(build_encoder("tiny", 32).state_dict()) is None


def test_weights_load_without_their_classifier_and_without_old_counters() -> None:
    source, target = build_encoder("resnet18", 32), build_encoder("resnet18", 32)
    state = {name: value for name, value in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    load_state(target, state)
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize("other", ["resnet50", "tiny"])
def test_weights_of_another_encoder_are_refused(other: str) -> None:
    with pytest.raises(InvalidArgumentError, match="do not fit"):
        load_state(build_encoder("resnet18", 32), build_encoder(other, 32).state_dict())


def test_an_unknown_encoder_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgumentError, match="tiny, resnet18, resnet50"):
        build_encoder("resnet", 32)


def test_normalised_pixels_have_the_mean_taken_off_and_the_deviation_divided_out() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = normalise(pixels, Normalisation((0.5, 0.2, 0.5), (0.25, 0.1, 0.5)))
    assert result.flatten().tolist() == pytest.approx([-2.0, 0.0, 1.0], abs=1e-6)


def test_strokes_sees_no_colour_but_where_things_lie() -> None:
    encoder = build_encoder("strokes", 32).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        features, recoloured, moved = encoder(images), encoder(images[:, [2, 0, 1]]), encoder(images.roll(8, 3))
    assert features.shape == (2, 4 * 4 * 256)
    torch.testing.assert_close(recoloured, features, rtol=1e-4, atol=1e-5)
    # Eight pixels are one place of the 4×4: what the features say has moved by one, but for what the borders add.
    places, shifted = features.view(2, 256, 4, 4)[:, :, 2], moved.view(2, 256, 4, 4)[:, :, 2]
    followed, stayed = (shifted[..., 2] - places[..., 1]).norm(), (shifted[..., 2] - places[..., 2]).norm()
    assert followed < stayed / 2


def test_tiny_is_small() -> None:
    assert sum(parameter.numel() for parameter in build_encoder("tiny", 32).parameters()) < 2_000_000
