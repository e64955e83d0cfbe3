"""Corruptions change images as they say: more with every severity, the same for a seed, never the image given."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from imagekin.errors import InvalidArgumentError
from imagekin.training.evaluation.corruptions import CHUNK, CORRUPTIONS, SEVERITIES, corrupt, disc, fractal
from imagekin.training.evaluation.robustness import mean_corruption_error


def pictures(count: int, side: int = 32) -> NDArray[np.uint8]:
    """Return images with the spectrum of natural ones: fractal noise, a little of it shared by the channels."""
    draws = torch.Generator().manual_seed(0)
    shape = torch.zeros(count, 3, side, side)
    channels = [fractal(shape, 1.5, draws) for _ in range(4)]
    mixed = torch.cat([0.6 * channels[0] + 0.4 * channel for channel in channels[1:]], dim=1)
    return mixed.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_severity_distorts_more_than_the_one_before(name: str) -> None:
    images = pictures(64)
    untouched = images.copy()
    distances = []
    for severity in SEVERITIES:
        changed = corrupt(images, name, severity)
        assert changed.dtype == np.uint8
        assert changed.shape == images.shape
        distances.append(float(np.abs(changed.astype(float) - images).mean()))
    assert np.array_equal(images, untouched)
    assert distances == sorted(distances)
    assert distances[0] > 0.2
    assert distances[-1] < 90


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_seed_says_everything_and_other_sizes_work(name: str) -> None:
    images = pictures(3, side=48)[:, :, :40]
    first = corrupt(images, name, 3, seed=1)
    assert np.array_equal(first, corrupt(images, name, 3, seed=1))
    assert first.shape == (3, 48, 40, 3)
    assert np.abs(first.astype(float) - images).mean() < 90


def test_noise_is_of_the_stated_strength() -> None:
    gray = np.full((8, 32, 32, 3), 128, dtype=np.uint8)
    for severity, spread in zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True):
        assert corrupt(gray, "gaussian_noise", severity).std() / 255 == pytest.approx(spread, rel=0.05)
    for severity, photons in zip(SEVERITIES, (500, 250, 100, 75, 50), strict=True):
        expected = np.sqrt(128 / 255 / photons)
        assert corrupt(gray, "shot_noise", severity).std() / 255 == pytest.approx(expected, rel=0.05)
    for severity, share in zip(SEVERITIES, (0.01, 0.02, 0.03, 0.05, 0.07), strict=True):
        changed = corrupt(gray, "impulse_noise", severity)
        assert np.mean(changed != 128) == pytest.approx(share, rel=0.15)
        assert set(np.unique(changed)) == {0, 128, 255}


@pytest.mark.parametrize("side", [8, 11, 16, 24, 32, 48, 64, 96, 128, 224])
def test_defocus_grows_with_severity_at_every_size(side: int) -> None:
    image = np.random.default_rng(side).integers(0, 256, (1, side, side, 3), np.uint8)
    # How far the pixels of noise move towards their neighbours: 0 for no blur.
    loss = [1 - corrupt(image, "defocus_blur", severity).std() / image.std() for severity in SEVERITIES]
    assert loss[0] > 0.005
    assert all(after > before + 0.004 for before, after in pairwise(loss)), loss


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 12), st.floats(0.01, 4))
def test_a_larger_disc_always_blurs_more(radius: float, more: float) -> None:
    def spread(kernel: Tensor) -> float:
        place = torch.arange(len(kernel)) - len(kernel) // 2
        return float((kernel.sum(1) * place**2).sum())

    small, large = disc(radius), disc(radius + more)
    assert float(small.sum()) == pytest.approx(1, abs=1e-4)
    assert spread(small) < spread(large)
    torch.testing.assert_close(small, small.T)
    torch.testing.assert_close(small, small.flip(0), atol=1e-5, rtol=0)


def test_contrast_and_brightness_do_what_they_say() -> None:
    images = pictures(4)
    faint = corrupt(images, "contrast", 5).astype(float)
    mean = images.mean((1, 2), keepdims=True)
    assert faint == pytest.approx(mean + 0.15 * (images - mean), abs=0.51)
    bright = corrupt(images, "brightness", 5).astype(int)
    room = images.max(3) < 255 * 0.65
    assert (bright.max(3) - images.max(3))[room] == pytest.approx(255 * 0.3, abs=1)
    black = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    assert (corrupt(black, "brightness", 5) == round(0.3 * 255)).all()


def test_blurs_leave_an_even_image_alone() -> None:
    even = np.full((2, 32, 32, 3), 77, dtype=np.uint8)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"):
        for severity in SEVERITIES:
            assert np.abs(corrupt(even, name, severity).astype(int) - 77).max() <= 1


def test_images_are_corrupted_apart_from_each_other() -> None:
    images = np.repeat(pictures(1), CHUNK + 2, axis=0)
    for name in ("gaussian_noise", "snow", "frost", "fog", "motion_blur", "elastic_transform"):
        changed = corrupt(images, name, 5)
        assert not np.array_equal(changed[0], changed[1])
        assert not np.array_equal(changed[0], changed[CHUNK])


def test_what_is_no_corruption_is_refused() -> None:
    images = pictures(1)
    for name, severity in (("rain", 1), ("fog", 0), ("fog", 6)):
        with pytest.raises(InvalidArgumentError, match="gaussian_noise"):
            corrupt(images, name, severity)
    with pytest.raises(InvalidArgumentError, match="8 pixels"):
        corrupt(images[:, :7], "fog", 1)


def test_mean_corruption_error_by_hand() -> None:
    baseline = {"fog": (0.9, 0.8, 0.7, 0.6, 0.5), "snow": (0.8, 0.8, 0.8, 0.8, 0.8)}
    assert mean_corruption_error(baseline, baseline) == pytest.approx(1)
    half = {name: tuple((1 + accuracy) / 2 for accuracy in accuracies) for name, accuracies in baseline.items()}
    assert mean_corruption_error(half, baseline) == pytest.approx(0.5)
    assert mean_corruption_error({"fog": (1.0,) * 5}, baseline) == 0
    assert mean_corruption_error({"fog": (0.7,) * 5, "snow": (0.6,) * 5}, baseline) == pytest.approx((1 + 2) / 2)
    with pytest.raises(InvalidArgumentError, match="no error"):
        mean_corruption_error({"fog": (0.7,) * 5}, {"fog": (1.0,) * 5})
