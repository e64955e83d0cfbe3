"""Views: random augmentations, drawn for each image, computed for the whole batch at once on its device.

A preset holds the amounts; `Views` draws and applies the changes, each of which is a function of
`imagekin.training.views.geometry` or `imagekin.training.views.colour`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from imagekin.errors import InvalidArgumentError
from imagekin.training.models.encoders import Normalisation
from imagekin.training.settings import TrainSettings
from imagekin.training.views.colour import adjust_tone, drop_channel, shift_hue
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
from imagekin.training.views.worker_threads import WorkerThreads

PIECE_VALUES = 2**19
"""On a CPU views are made for so many numbers at a time, which stay in its cache, and for several such side by side."""


@dataclass(frozen=True, slots=True)
class ViewPreset:
    """Parameters of views. A pair holds the ends of a range; a single amount a means the range 1 ± a.

    Attributes:
        about: purpose and source of the preset.
        crop_scale: part of the image's area that a crop keeps.
        crop_ratio: width over height of a crop.
        flip: probability of mirroring left to right.
        rotate: largest rotation in degrees, either way; 0 leaves out the affine map altogether.
        shear: largest shear in degrees, either way.
        zoom: factor of the affine map.
        shift: largest shift in parts of the side, either way.
        stretch: largest logarithm, either way, of a factor by which the width grows and the height shrinks.
        elastic: standard deviation of a smooth random displacement, in parts of the side; only with `rotate`.
        strokes: largest softness of the strokes, dark on white paper, and half of their largest gain over 1.
        jitter: probability of changing colours at all.
        brightness: amount.
        contrast: amount.
        saturation: amount.
        hue: largest turn of the hue, in turns, either way.
        gray: probability of a gray view.
        blur: probability of a Gaussian blur.
        blur_sigma: its standard deviation, in parts of the view's side.
        channel_drop: probability of losing one of the three channels, which becomes the data's mean.
        cutout: probability of a hole, a box filled with the data's mean colour (DeVries & Taylor 2017).
        cutout_scale: part of the view's area that a hole takes.
    """

    about: str
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    rotate: float = 0.0
    shear: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    stretch: float = 0.0
    elastic: float = 0.0
    strokes: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gray: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.005, 0.02)
    channel_drop: float = 0.0
    cutout: float = 0.0
    cutout_scale: tuple[float, float] = (0.06, 0.25)


PRESETS = {
    "supcon": ViewPreset(
        about="small natural images, as the SupCon reference code draws them (Khosla et al. 2020)",
        crop_scale=(0.2, 1.0),
        flip=0.5,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        gray=0.2,
    ),
    "simclr": ViewPreset(
        about="small natural images without labels: harder crops, colour strength 0.5, no blur (Chen et al. 2020, B.9)",
        crop_scale=(0.08, 1.0),
        flip=0.5,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        gray=0.2,
    ),
    "mild": ViewPreset(
        about="small natural images with labels, in long trainings: nearer to the image than supcon, half with a hole",
        crop_scale=(0.4, 1.0),
        flip=0.5,
        jitter=0.8,
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
        hue=0.03,
        gray=0.05,
        cutout=0.5,
    ),
    "gentle": ViewPreset(
        about="small natural images with labels, in short trainings: milder crops and colours than supcon, no holes",
        crop_scale=(0.5, 1.0),
        flip=0.5,
        jitter=0.8,
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
        hue=0.05,
        gray=0.05,
    ),
    "photos": ViewPreset(
        about="photos of things whose colour matters: milder colour changes, some blur",
        crop_scale=(0.25, 1.0),
        flip=0.5,
        rotate=15.0,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.3,
        hue=0.03,
        blur=0.1,
    ),
    "crops": ViewPreset(
        about="photos for an encoder that knows photos: crops and mirror images, colours as they are",
        crop_scale=(0.35, 1.0),
        flip=0.5,
    ),
    "strokes": ViewPreset(
        about="digits, letters and drawings: small turns, shears and shifts; never mirrored, colours hardly touched",
        crop_ratio=(1.0, 1.0),
        rotate=12.0,
        shear=8.0,
        zoom=(0.85, 1.15),
        shift=0.08,
        jitter=0.8,
        brightness=0.2,
        contrast=0.2,
    ),
    "cutout": ViewPreset(
        about="small natural images, as supcon, that must also be known with a part or a channel missing",
        crop_scale=(0.2, 1.0),
        flip=0.5,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        gray=0.2,
        channel_drop=0.1,
        cutout=0.5,
    ),
    "characters": ViewPreset(
        about="handwritten characters, dark on white: as strokes, but bent a little and drawn with other pens",
        crop_ratio=(1.0, 1.0),
        rotate=12.0,
        shear=10.0,
        zoom=(1 / 1.15, 1.15),
        shift=0.08,
        stretch=0.1,
        elastic=0.02,
        strokes=0.6,
    ),
    "upright": ViewPreset(
        about="natural images whose upright direction is to be learnt: neither turned nor mirrored",
        crop_scale=(0.4, 1.0),
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.05,
        gray=0.1,
    ),
    "none": ViewPreset(about="no change at all", crop_ratio=(1.0, 1.0)),
}


def find_preset(name: str) -> ViewPreset:
    """Return the preset of that name; raises InvalidArgumentError when there is none."""
    if name not in PRESETS:
        names = ", ".join(PRESETS)
        raise InvalidArgumentError(f"there is no preset of views {name!r}; choose one of: {names}", field="views")
    return PRESETS[name]


class Views:
    """Make views of images: float [N, 3, size, size], normalised, ready for the encoder.

    Args:
        preset: how views are drawn.
        size: side of a view in pixels.
        normalisation: of the encoder's input.
    """

    def __init__(self, preset: ViewPreset, size: int, normalisation: Normalisation) -> None:
        self.preset = preset
        self.size = size
        self.normalisation = normalisation
        self._workers = WorkerThreads()
        self._kept: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def named(cls, name: str, size: int, normalisation: Normalisation) -> "Views":
        """Build views from the preset of that name; raises InvalidArgumentError when there is none."""
        return cls(find_preset(name), size, normalisation)

    def __call__(self, images: Tensor, generator: torch.Generator, count: int = 1) -> Tensor:
        """Return views of each image, normalised: all first views, then all second ones, and so on.

        Args:
            images: uint8 [N, 3, H, W], on the generator's device.
            generator: of all draws; the views depend on its state and the images only.
            count: views of each image.

        Returns:
            Float32 [count·N, 3, size, size].
        """
        shape = (count * len(images), 3, self.size, self.size)
        result = torch.empty(shape, device=images.device, memory_format=torch.channels_last)
        scale, shift, _ = self._constants(images.device)

        def make(part: Tensor, place: Tensor, draws: torch.Generator) -> None:
            torch.addcmul(shift, self.draw(part, draws), scale, out=place)

        if images.device.type != "cpu":
            for place in result.chunk(count):
                make(images, place, generator)
            return result
        pieces = math.ceil(result.numel() / count / PIECE_VALUES)
        parts = images.chunk(pieces) * count
        places = [piece for place in result.chunk(count) for piece in place.chunk(pieces)]
        # Each part has its own seed, so that their order does not matter.
        seeds = torch.randint(2**63 - 1, (len(parts),), generator=generator).tolist()
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._workers.run([partial(make, *each) for each in zip(parts, places, draws, strict=True)])
        return result

    def draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return one view of each image before normalisation: float [N, 3, size, size] in [0, 1]."""
        preset, count = self.preset, len(images)
        boxes = draw_boxes(count, preset.crop_scale, preset.crop_ratio, generator)
        flip = _chance(count, preset.flip, generator) if preset.flip else None
        if flip is None and preset.crop_scale == (1.0, 1.0) and images.shape[2] == images.shape[3] == self.size:
            views = images.float().mul_(1 / 255)  # nothing to crop or resize
        else:
            views = crop_resize(images, boxes, self.size, flip).mul_(1 / 255)
        if preset.rotate:
            maps = draw_affine(count, preset.rotate, preset.shear, preset.zoom, preset.shift, generator, preset.stretch)
            fields = draw_elastic(count, preset.elastic, self.size, generator) if preset.elastic else None
            views = warp(views, maps, fields)
        if preset.strokes:
            softness = _uniform(count, 0.0, preset.strokes, generator)
            views = vary_strokes(views, softness, 1 + softness * _uniform(count, 0.0, 2.0, generator))
        if preset.jitter or preset.gray:
            views = self._recolour(views, generator)
        if preset.blur:
            chosen = _chance(count, preset.blur, generator)
            sigma = _uniform(count, *preset.blur_sigma, generator).mul_(self.size)
            views = _change(views, chosen, sigma, blur)
        return self._hide(views, generator)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise float images [N, 3, H, W] in [0, 1] for the encoder."""
        scale, shift, _ = self._constants(images.device)
        return torch.addcmul(shift, images, scale)

    def _recolour(self, views: Tensor, generator: torch.Generator) -> Tensor:
        """Change tone and hue of the chosen images; in a gray view, of saturation 0, hue has no effect."""
        preset, count = self.preset, len(views)
        jittered = _chance(count, preset.jitter, generator)
        gray = _chance(count, preset.gray, generator)
        factors = [
            torch.where(jittered, _uniform(count, max(0.0, 1 - amount), 1 + amount, generator), 1.0)
            for amount in (preset.brightness, preset.contrast, preset.saturation)
        ]
        factors[2] = factors[2].masked_fill_(gray, 0.0)
        views = adjust_tone(views, *factors)
        if preset.hue:
            turns = _uniform(count, -preset.hue, preset.hue, generator)
            views = _change(views, jittered & ~gray, turns, shift_hue)
        return views

    def _hide(self, views: Tensor, generator: torch.Generator) -> Tensor:
        """Replace a channel or a box by the data's mean, which is 0 to the encoder."""
        preset, count = self.preset, len(views)
        _, _, mean = self._constants(views.device)
        if preset.channel_drop:
            chosen = _chance(count, preset.channel_drop, generator)
            channels = torch.randint(3, (count,), generator=generator, device=generator.device)
            views = drop_channel(views, channels.masked_fill_(~chosen, -1), mean)
        if preset.cutout:
            chosen = _chance(count, preset.cutout, generator)
            holes = draw_boxes(count, preset.cutout_scale, (0.5, 2.0), generator)
            views = cut_out(views, holes.mul_(chosen.view(-1, 1)), mean)
        return views

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return scale and shift of the normalisation, [1, 3, 1, 1], and the mean, [3].

        They are cached on the device: copying them each time would make the CPU wait for it.
        """
        if device not in self._kept:
            mean = torch.tensor(self.normalisation.mean, device=device)
            std = torch.tensor(self.normalisation.std, device=device).view(1, 3, 1, 1)
            self._kept[device] = 1 / std, -mean.view(1, 3, 1, 1) / std, mean
        return self._kept[device]


def check_views(settings: TrainSettings) -> None:
    """Refuse views that hide what the objective is to learn.

    Raises:
        InvalidArgumentError: they do, or there is no such preset.
    """
    preset = find_preset(settings.views)
    if settings.objective == "rotation" and preset.rotate:
        raise InvalidArgumentError(
            f"--views {settings.views} turns images by up to {preset.rotate:g}°, and rotation learns how they are "
            "turned: choose --views upright",
            field="views",
        )
    if settings.mirrors_as_classes and preset.flip:
        raise InvalidArgumentError(
            f"--views {settings.views} mirrors images, and --mirrors-as-classes tells mirror images apart: choose "
            "--views upright, strokes or characters",
            field="views",
        )


def _change(views: Tensor, chosen: Tensor, amount: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply `change`, by an amount [N] each, to the chosen images, bool [N].

    On a CPU only these are changed. On other devices all are changed and the chosen ones kept, because the CPU would
    have to wait for the device to know their number.
    """
    if views.device.type != "cpu":
        return torch.where(chosen.view(-1, 1, 1, 1), change(views, amount), views)
    rows = chosen.nonzero().squeeze(1)
    if len(rows):
        views[rows] = change(views[rows], amount[rows])
    return views


def _chance(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device) < probability


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device) * (high - low) + low
