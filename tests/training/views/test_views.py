"""Each change of a view does what its definition says, for each image on its own, and follows from the seed alone."""

import colorsys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from imagekin.errors import InvalidArgumentError
from imagekin.training.models.encoders import Normalisation, normalise
from imagekin.training.presets import recommended
from imagekin.training.views.colour import adjust_tone, drop_channel, luma, shift_hue
from imagekin.training.views.geometry import (
    blur,
    crop_resize,
    cut_out,
    draw_affine,
    draw_boxes,
    draw_elastic,
    vary_strokes,
    warp,
)
from imagekin.training.views.views import PRESETS, ViewPreset, Views, check_views

PLAIN = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
WHOLE = (0.0, 0.0, 1.0, 1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, height: int = 16, width: int | None = None, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width or height), generator=seeded(seed), dtype=torch.uint8)


@settings(max_examples=40, deadline=None)
@given(
    top=st.floats(0, 0.5),
    left=st.floats(0, 0.5),
    height=st.floats(0.1, 0.5),
    width=st.floats(0.1, 0.5),
    size=st.sampled_from([4, 9, 16, 40]),
)
def test_crops_are_resized_as_pillow_resizes_them(
    top: float, left: float, height: float, width: float, size: int
) -> None:
    images = noise(2, 24, 31)
    boxes = torch.tensor([[top, left, height, width], WHOLE])
    result = crop_resize(images, boxes, size)
    for row, box in enumerate(boxes.tolist()):
        pillow = Image.fromarray(images[row].permute(1, 2, 0).numpy())
        corners = (box[1] * 31, box[0] * 24, (box[1] + box[3]) * 31, (box[0] + box[2]) * 24)
        expected = np.asarray(pillow.resize((size, size), Image.Resampling.BILINEAR, box=corners), np.float32)
        # Pillow rounds to whole levels after each of its two passes.
        assert np.abs(result[row].permute(1, 2, 0).numpy() - expected).max() <= 1.6


def test_the_whole_image_at_its_own_size_is_the_image() -> None:
    images = noise(3)
    result = crop_resize(images, torch.tensor([WHOLE] * 3), 16)
    torch.testing.assert_close(result, images.float(), atol=1e-3, rtol=0)


def test_only_the_chosen_images_are_mirrored() -> None:
    images = noise(4)
    flip = torch.tensor([True, False, True, False])
    result = crop_resize(images, torch.tensor([WHOLE] * 4), 16, flip)
    expected = images.float()
    expected[flip] = expected[flip].flip(3)
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=0)


def test_boxes_lie_in_the_image_and_keep_the_area_asked_for() -> None:
    boxes = draw_boxes(5000, (0.2, 0.9), (3 / 4, 4 / 3), seeded())
    top, left, height, width = boxes.unbind(1)
    assert (boxes >= 0).all()
    assert (top + height <= 1 + 1e-6).all()
    assert (left + width <= 1 + 1e-6).all()
    uncut = (height < 1) & (width < 1)
    area, ratio = (height * width)[uncut], (width / height)[uncut]
    assert 0.2 - 1e-5 <= area.min() < 0.22
    assert 0.85 < area.max() <= 0.9 + 1e-5
    assert 0.75 - 1e-5 <= ratio.min() < 0.76
    assert 1.32 < ratio.max() <= 4 / 3 + 1e-5


def test_boxes_are_those_of_torchvision() -> None:
    """Boxes that do not fit are drawn again, so the mean area is 0.537 and not that of the range."""
    boxes = draw_boxes(40_000, (0.2, 1.0), (3 / 4, 4 / 3), seeded())
    # torchvision rounds to whole pixels, so its image is large.
    image = torch.zeros(1, 4000, 4000)
    torch.manual_seed(0)
    crops = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(10_000)]
    theirs = torch.tensor(crops) / 4000

    def quantiles(values: Tensor) -> Tensor:
        return values.quantile(torch.linspace(0.05, 0.95, 19))

    def figures(drawn: Tensor) -> tuple[Tensor, ...]:
        top, left, height, width = drawn.unbind(1)
        return height * width, width / height, top, left

    for mine, other in zip(figures(boxes), figures(theirs), strict=True):
        assert (quantiles(mine) - quantiles(other)).abs().max() < 0.02
    assert (boxes[:, 2] * boxes[:, 3]).mean() == pytest.approx(0.5375, abs=0.004)


@pytest.mark.parametrize(
    ("ratio", "height", "width"),
    [((2.0, 4.0), 0.5, 1.0), ((0.25, 0.5), 1.0, 0.5), ((0.5, 2.0), None, None), ((1.0, 1.0), 1.0, 1.0)],
)
def test_a_box_that_never_fits_is_the_largest_in_the_middle(
    ratio: tuple[float, float], height: float | None, width: float | None
) -> None:
    boxes = draw_boxes(200, (1.0, 1.0), ratio, seeded())
    if height is not None and width is not None:
        middle = [(1 - height) / 2, (1 - width) / 2, height, width]
        torch.testing.assert_close(boxes, torch.tensor([middle]).expand(200, 4))
    assert ((boxes[:, 0] + boxes[:, 2]) <= 1 + 1e-6).all()


def test_views_that_hide_the_task_are_refused_and_no_default_does(tmp_path: Path) -> None:
    for data in ("digits", "photos"):
        rotation = replace(recommended(data, tmp_path, "rotation"), objective="rotation")
        preset = PRESETS[rotation.views]
        assert (preset.rotate, preset.flip) == (0, 0)
        check_views(rotation)
    for views in ("photos", "strokes", "characters"):
        with pytest.raises(InvalidArgumentError, match="upright"):
            check_views(replace(rotation, views=views))
    mirrored = replace(recommended("digits", tmp_path), mirrors_as_classes=True)
    check_views(mirrored)
    with pytest.raises(InvalidArgumentError, match="mirror"):
        check_views(replace(mirrored, views="photos"))


def test_no_rotation_changes_nothing_and_a_quarter_turn_is_one() -> None:
    images = noise(2).float()
    same = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(2, 1, 1)
    torch.testing.assert_close(warp(images, same), images, atol=1e-3, rtol=1e-4)
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0]]).repeat(2, 1, 1)
    torch.testing.assert_close(warp(images, quarter), images.rot90(1, (2, 3)), atol=1e-2, rtol=1e-4)


def test_affine_maps_stay_within_what_was_asked() -> None:
    maps = draw_affine(3000, 30.0, 0.0, (0.5, 2.0), 0.1, seeded())
    zoom = 1 / maps[:, :, :2].det().sqrt()
    angle = torch.atan2(maps[:, 1, 0], maps[:, 0, 0]).rad2deg()
    assert 0.5 - 1e-4 <= zoom.min() < 0.55
    assert 1.8 < zoom.max() <= 2 + 1e-4
    assert 29 < angle.abs().max() <= 30 + 1e-3
    assert 0.19 < maps[:, :, 2].abs().max() <= 0.2


def test_a_stretch_changes_the_sides_and_not_the_area() -> None:
    maps = draw_affine(3000, 0.0, 0.0, (1.0, 1.0), 0.0, seeded(), stretch=0.1)
    width, height = 1 / maps[:, 0, 0], 1 / maps[:, 1, 1]
    torch.testing.assert_close(width * height, torch.ones(3000))
    assert 0.099 < width.log().max() <= 0.1 + 1e-6
    assert -0.1 - 1e-6 <= width.log().min() < -0.099


def test_elastic_fields_have_the_deviation_asked_for_and_are_smooth() -> None:
    knots = draw_elastic(4000, 0.02, 4, seeded())
    assert knots.shape == (4000, 4, 4, 2)
    assert float(knots.std()) == pytest.approx(2 * 0.02, rel=0.02)
    fields = draw_elastic(4000, 0.02, 32, seeded())
    torch.testing.assert_close(fields.mean((1, 2)), knots.mean((1, 2)), atol=0.01, rtol=0)
    assert fields.diff(dim=1).std() < fields.std() / 4


def test_strokes_are_softened_by_the_mean_of_their_surroundings_and_made_up_for_up_to_black() -> None:
    images = torch.ones(4, 3, 9, 9)
    images[:, :, :, 4] = 0.0  # a line, one pixel wide
    softness, gain = torch.tensor([0.0, 1.0, 1.0, 0.5]), torch.tensor([1.0, 1.0, 6.0, 1.0])
    rows = vary_strokes(images, softness, gain)[:, 0, 4, 2:7]
    same, soft, wide, half = (1 - rows).tolist()
    assert same == pytest.approx([0, 0, 1, 0, 0])
    assert soft == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])
    assert wide == pytest.approx([0, 1, 1, 1, 0])
    assert half == pytest.approx([0, 1 / 6, 2 / 3, 1 / 6, 0])
    assert (vary_strokes(torch.ones(1, 3, 8, 8), softness[1:2], gain[2:3]) == 1).all()


def test_a_field_of_one_pixel_moves_an_image_by_one_pixel() -> None:
    images = noise(2).float()
    same = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(2, 1, 1)
    right = torch.tensor([2 / 16, 0.0]).expand(2, 16, 16, 2)
    moved = warp(images, same, right)
    torch.testing.assert_close(moved[..., :-1], images[..., 1:], atol=1e-2, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    red=st.integers(0, 255),
    green=st.integers(0, 255),
    blue=st.integers(0, 255),
    turn=st.floats(-1, 1, allow_subnormal=False),
)
def test_hue_is_turned_as_by_way_of_hsv(red: int, green: int, blue: int, turn: float) -> None:
    pixel = torch.tensor([red, green, blue]).view(1, 3, 1, 1) / 255
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    expected = colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)
    result = shift_hue(pixel, torch.tensor([turn]))
    assert result.flatten().tolist() == pytest.approx(expected, abs=2e-5)


def test_tone_is_brightness_then_contrast_then_saturation() -> None:
    images = torch.rand(4, 3, 8, 8, generator=seeded()) * 0.4 + 0.3  # far from the ends, where nothing is clipped
    brightness, contrast = torch.tensor([1.0, 1.2, 0.9, 1.0]), torch.tensor([1.0, 0.8, 1.1, 1.0])
    saturation = torch.tensor([1.0, 0.7, 1.2, 0.0])
    bright = images * brightness.view(-1, 1, 1, 1)
    mean = luma(bright).mean((2, 3), keepdim=True)
    contrasted = mean + (bright - mean) * contrast.view(-1, 1, 1, 1)
    expected = luma(contrasted) + (contrasted - luma(contrasted)) * saturation.view(-1, 1, 1, 1)
    result = adjust_tone(images.clone(), brightness, contrast, saturation)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(result[0], images[0])
    torch.testing.assert_close(result[3], luma(images[3:]).expand(1, 3, 8, 8)[0])


def test_luma_is_pillows() -> None:
    images = noise(1)
    expected = np.asarray(Image.fromarray(images[0].permute(1, 2, 0).numpy()).convert("L"), np.float32)
    assert np.abs(luma(images.float())[0, 0].numpy() - expected).max() <= 1


def test_blur_keeps_the_mean_and_spreads_a_point_as_a_gaussian() -> None:
    images = torch.zeros(2, 3, 33, 33)
    images[:, :, 16, 16] = 1.0
    result = blur(images, torch.tensor([1e-3, 2.0]))
    torch.testing.assert_close(result[0], images[0])
    assert result[1].sum((1, 2)).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    across = result[1, 0].sum(0)
    place = torch.arange(33.0) - 16
    assert float((across * place**2).sum()) == pytest.approx(4.0, rel=1e-3)
    flat = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(blur(flat, torch.tensor([5.0])), flat)


FILL = torch.tensor([0.1, 0.2, 0.3])


@settings(max_examples=40, deadline=None)
@given(
    top=st.floats(0, 0.6), left=st.floats(0, 0.6), height=st.floats(0, 0.4), width=st.floats(0, 0.4),
    cut=st.integers(0, 4),
)  # fmt: skip
def test_a_hole_is_its_box_and_nothing_else(top: float, left: float, height: float, width: float, cut: int) -> None:
    images = torch.rand(4, 3, 20, 30, generator=seeded()) + 1
    boxes = torch.tensor([[top, left, height, width], [0, 0, 0, 0], WHOLE, [left, top, width, height]])
    result = cut_out(images, boxes, FILL)
    filled = (result == FILL.view(1, 3, 1, 1)).all(1)
    assert torch.equal(result.masked_select(~filled.unsqueeze(1)), images.masked_select(~filled.unsqueeze(1)))
    assert filled.sum((1, 2))[1:3].tolist() == [0, 600]
    rows, columns = filled[0].any(1).sum(), filled[0].any(0).sum()
    assert filled[0].sum() == rows * columns
    if rows and columns:  # a box narrower than a pixel may lie between two centres
        assert abs(float(rows) - 20 * height) <= 1
        assert abs(float(columns) - 30 * width) <= 1
    parts = [cut_out(images[part], boxes[part], FILL) for part in (slice(cut), slice(cut, None))]
    assert torch.equal(torch.cat(parts), result)


def test_one_channel_goes_missing_and_only_where_asked() -> None:
    images = torch.rand(4, 3, 5, 6, generator=seeded()) + 1
    result = drop_channel(images, torch.tensor([0, 2, -1, 1]), FILL)
    expected = images.clone()
    expected[0, 0], expected[1, 2], expected[3, 1] = FILL[0], FILL[2], FILL[1]
    assert torch.equal(result, expected)
    assert torch.equal(drop_channel(images[1:2], torch.tensor([2]), FILL), result[1:2])


def test_what_is_hidden_is_zero_to_the_encoder_as_often_and_as_large_as_the_preset_says() -> None:
    preset = ViewPreset(about="", crop_ratio=(1.0, 1.0), channel_drop=0.3, cutout=0.5, cutout_scale=(0.1, 0.3))
    images = torch.full((2000, 3, 16, 16), 255, dtype=torch.uint8)
    views = Views(preset, 16, Normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)))(images, seeded())
    hidden = views.abs() < 1e-5
    holes = hidden.all(1).float().mean((1, 2))
    assert float((holes > 0).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert float(holes[holes > 0].mean()) == pytest.approx(0.2, abs=0.02)
    assert float(holes.max()) < 0.4
    dropped = hidden.flatten(2).all(2)
    assert dropped.any(1).float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert dropped.sum(1).max() == 1
    assert dropped.float().mean(0).tolist() == pytest.approx([0.1] * 3, abs=0.03)


@pytest.mark.parametrize("name", PRESETS)
def test_views_follow_from_the_seed_and_stay_in_range(name: str) -> None:
    images = noise(32, 20)
    views = Views.named(name, 16, PLAIN)
    first, again, other = views(images, seeded(1)), views(images, seeded(1)), views(images, seeded(2))
    assert first.shape == (32, 3, 16, 16)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first, again)
    assert name == "none" or not torch.equal(first, other)
    assert first.min() >= -1e-4
    assert first.max() <= 1 + 1e-4


def test_views_of_several_pieces_and_threads_are_those_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagekin.training.views.views.PIECE_VALUES", 3 * 16**2 * 10)
    images, results = noise(32, 20), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(Views.named("photos", 16, PLAIN)(images, seeded(), 2))
    finally:
        torch.set_num_threads(threads)
    assert results[0].shape == (64, 3, 16, 16)
    assert torch.equal(*results)
    assert not torch.equal(results[0][:32], results[0][32:])


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "none"])
def test_every_image_of_a_batch_is_changed_in_its_own_way(name: str) -> None:
    images = noise(1, 24).expand(16, -1, -1, -1)
    result = Views.named(name, 16, PLAIN)(images, seeded())
    distinct = {tuple(view.flatten().tolist()) for view in result}
    assert len(distinct) == 16


def test_without_any_change_a_view_is_the_normalised_image() -> None:
    images = noise(5)
    normalisation = Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    result = Views.named("none", 16, normalisation)(images, seeded())
    torch.testing.assert_close(result, normalise(images, normalisation), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["strokes", "characters"])
def test_strokes_are_never_mirrored(name: str) -> None:
    assert PRESETS[name].flip == 0
    images = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    images[:, :, :, :4] = 255  # a bar at the left
    result = Views.named(name, 16, PLAIN)(images, seeded())
    assert (result[..., :8].mean((1, 2, 3)) > result[..., 8:].mean((1, 2, 3))).all()


def test_probabilities_are_kept() -> None:
    preset = ViewPreset(about="", crop_ratio=(1.0, 1.0), flip=0.25, gray=0.5)
    images = noise(1).expand(2000, -1, -1, -1)
    result = Views(preset, 16, PLAIN).draw(images, seeded())
    gray = (result[:, 0] - result[:, 1]).abs().amax((1, 2)) < 1e-4
    mirrored = (luma(result) - luma(images[:1] / 255.0).flip(3)).abs().amax((1, 2, 3)) < 1e-3
    assert float(gray.float().mean()) == pytest.approx(0.5, abs=0.05)
    assert float(mirrored.float().mean()) == pytest.approx(0.25, abs=0.05)


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgumentError, match="supcon, simclr"):
        Views.named("simcrl", 16, PLAIN)
