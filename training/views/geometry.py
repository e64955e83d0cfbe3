"""Crop, flip, turn, blur and cut out, with separate draws for each image: the geometric half of the views.

Crop, resize and flip together are one linear map of the rows and one of the columns, hence two batched matrix products.
They filter as Pillow's antialiased bilinear resize does, which `grid_sample` cannot, and are faster.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

_ELASTIC_KNOTS = 4
_BOX_TRIES = 10


def draw_boxes(
    count: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Draw crop boxes as torchvision's `RandomResizedCrop` does for square images, but not on whole pixels.

    Area uniform in `scale`, aspect ratio log-uniform in `ratio`, place uniform. A box that does not fit is drawn again,
    so that large areas are rarer than small ones: with (0.2, 1) the mean area is 0.537, not 0.6. After ten tries the
    box is the largest in the middle, of the allowed ratio that is nearest to the image's.

    Args:
        count: N.
        scale: least and largest part of the image's area.
        ratio: least and largest width over height.
        generator: of the draws; its device is the result's.

    Returns:
        Float [N, 4]: top, left, height, width in parts of the image's sides.
    """
    draws = torch.rand(2, _BOX_TRIES, count, generator=generator, device=generator.device)
    place = torch.rand(2, count, generator=generator, device=generator.device)
    side = (scale[0] + (scale[1] - scale[0]) * draws[0]).sqrt()
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp((low + (high - low) * draws[1]) / 2)
    sides = torch.stack((side / aspect, side * aspect))
    fits = (sides <= 1).all(0)
    first = fits.int().argmax(0).expand(2, 1, count)
    height, width = sides.gather(1, first).squeeze(1)
    none = ~fits.any(0)
    height, width = height.masked_fill(none, min(1.0, 1 / ratio[0])), width.masked_fill(none, min(1.0, ratio[1]))
    # In the middle, where no try fitted; there is no other place along a side of full length.
    top, left = torch.where(none, 0.5, place)
    return torch.stack(((1 - height) * top, (1 - width) * left, height, width), dim=1)


def crop_resize(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Cut a box out of each image and resize it to a square, bilinear and antialiased.

    Args:
        images: uint8 or float [N, 3, H, W].
        boxes: float [N, 4]: top, left, height, width in parts of the image's sides.
        size: S, side of the result in pixels.
        flip: bool [N], which results are mirrored left to right; None mirrors none.

    Returns:
        Float32 [N, 3, S, S] in the units of `images`.
    """
    count, channels, height, width = images.shape
    rows = _resize_weights(boxes[:, 0], boxes[:, 2], height, size)
    columns = _resize_weights(boxes[:, 1], boxes[:, 3], width, size)
    if flip is not None:
        columns = torch.where(flip.view(-1, 1, 1), columns.flip(1), columns)
    # Planes interleaved by row, [N, H, 3, W], so that both products are plain batched ones without a copy in between.
    interleaved = images.permute(0, 2, 1, 3).to(torch.float32, memory_format=torch.contiguous_format)
    tall = torch.bmm(rows, interleaved.reshape(count, height, channels * width))
    wide = torch.bmm(tall.view(count, size * channels, width), columns.transpose(1, 2))
    return wide.view(count, size, channels, size).permute(0, 2, 1, 3)


def _resize_weights(start: Tensor, extent: Tensor, pixels: int, size: int) -> Tensor:
    """Return the matrices that resample a line of pixels with a triangle filter, as Pillow's `resize(box=…)` does.

    Args:
        start: [N], where the box starts, in parts of the line.
        extent: [N], length of the box, in parts of the line.
        pixels: P, length of the line.
        size: S, pixels of the result.

    Returns:
        Float32 [N, S, P]; each row sums to 1.
    """
    device = start.device
    step = (extent * (pixels / size)).view(-1, 1, 1)
    centre = (start * pixels).view(-1, 1, 1) + (torch.arange(size, device=device).view(1, -1, 1) + 0.5) * step
    distance = (torch.arange(pixels, device=device) + 0.5).view(1, 1, -1) - centre
    weights = distance.abs_().div_(step.clamp_min(1.0)).neg_().add_(1.0).clamp_min_(0.0)
    return weights.div_(weights.sum(2, keepdim=True))


def draw_affine(
    count: int,
    degrees: float,
    shear: float,
    zoom: tuple[float, float],
    shift: float,
    generator: torch.Generator,
    stretch: float = 0.0,
) -> Tensor:
    """Draw affine maps: rotation and shear in ±degrees, zoom log-uniform, shift in ± parts of the side; each uniform.

    `stretch` is the largest logarithm, either way, of a factor by which the width grows and the height shrinks.

    Returns:
        Float [N, 2, 3]: from coordinates of the result to those of the image, both from −1 to 1.
    """
    draws = torch.rand(5, count, generator=generator, device=generator.device) * 2 - 1
    angle, slant = draws[0] * math.radians(degrees), (draws[1] * math.radians(shear)).tan()
    low, high = math.log(zoom[0]), math.log(zoom[1])
    scale = torch.exp(-(low + (high - low) * (draws[2] + 1) / 2))
    cos, sin = angle.cos() * scale, angle.sin() * scale
    first = torch.stack((cos, slant * cos - sin, draws[3] * 2 * shift), dim=1)
    second = torch.stack((sin, slant * sin + cos, draws[4] * 2 * shift), dim=1)
    maps = torch.stack((first, second), dim=1)
    if stretch:
        wider = torch.exp((torch.rand(count, generator=generator, device=generator.device) * 2 - 1) * stretch)
        maps[:, :, :2] *= torch.stack((1 / wider, wider), dim=1).unsqueeze(1)
    return maps


def draw_elastic(count: int, amount: float, size: int, generator: torch.Generator) -> Tensor:
    """Draw smooth random fields of displacement: normal at 4×4 knots, cubic between them (Simard et al. 2003's idea).

    Args:
        count: N.
        amount: standard deviation at the knots, in parts of the image's side.
        size: S, side of the field.
        generator: of the draws; its device is the result's.

    Returns:
        Float [N, S, S, 2], in coordinates from −1 to 1, to be added to a grid.
    """
    device = generator.device
    knots = torch.randn(count, 2, _ELASTIC_KNOTS, _ELASTIC_KNOTS, generator=generator, device=device) * (2 * amount)
    # The interpolation is linear; as two small products it is many times faster than interpolating each field.
    each = torch.eye(_ELASTIC_KNOTS, device=device).view(1, 1, _ELASTIC_KNOTS, _ELASTIC_KNOTS)
    weights = functional.interpolate(each, size=(size, _ELASTIC_KNOTS), mode="bicubic", align_corners=False)[0, 0]
    return (weights @ knots @ weights.T).permute(0, 2, 3, 1)


def warp(images: Tensor, maps: Tensor, fields: Tensor | None = None) -> Tensor:
    """Apply an affine map to each image, bilinear; the border is repeated outside.

    Args:
        images: float [N, 3, H, W].
        maps: float [N, 2, 3], see `draw_affine`.
        fields: float [N, H, W, 2], further displacements, see `draw_elastic`; None for none.
    """
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    if fields is not None:
        grid += fields
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def vary_strokes(images: Tensor, softness: Tensor, gain: Tensor) -> Tensor:
    """Change the pen of dark strokes on white paper: soften the ink, then multiply it, up to black.

    Args:
        images: float [N, 3, H, W] in [0, 1].
        softness: [N], from 0 to 1, part of the ink that is replaced by its mean over 3×3 pixels.
        gain: [N], at least 1, factor of the ink; it determines the thickness of a softened stroke.
    """
    ink = 1 - images
    rows, columns = (torch.ones(side, side, device=ink.device).tril_(1).triu_(-1).div_(3) for side in ink.shape[2:])
    soft = rows @ ink @ columns  # a pooling operator takes ten times as long
    return 1 - torch.lerp(ink, soft, softness.view(-1, 1, 1, 1)).mul_(gain.view(-1, 1, 1, 1)).clamp_max_(1.0)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with a Gaussian, mirrored at the border.

    Args:
        images: float [N, 3, H, W].
        sigma: [N], standard deviation in pixels.
    """
    count, channels, height, width = images.shape
    rows, columns = _gaussian(sigma, height), _gaussian(sigma, width)
    interleaved = images.permute(0, 2, 1, 3).contiguous()
    tall = torch.bmm(rows, interleaved.view(count, height, channels * width))
    wide = torch.bmm(tall.view(count, height * channels, width), columns.transpose(1, 2))
    return wide.view(count, height, channels, width).permute(0, 2, 1, 3)


def cut_out(images: Tensor, boxes: Tensor, fill: Tensor) -> Tensor:
    """Fill a box in each image: the pixels whose centres lie in it.

    Args:
        images: float [N, 3, H, W].
        boxes: float [N, 4]: top, left, height, width in parts of the image's sides; one without height fills nothing.
        fill: colour [3], in the units of `images`.
    """
    inside = []
    for start, extent, pixels in zip(boxes[:, :2].T, boxes[:, 2:].T, images.shape[2:], strict=True):
        centre = (torch.arange(pixels, device=images.device) + 0.5) / pixels
        inside.append((centre >= start.view(-1, 1)) & (centre < (start + extent).view(-1, 1)))
    hole = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)
    return torch.where(hole.unsqueeze(1), fill.view(1, 3, 1, 1), images)


def _gaussian(sigma: Tensor, pixels: int) -> Tensor:
    """Return the matrices [N, P, P] of a Gaussian filter along a line of P pixels, mirrored at both ends."""
    place = torch.arange(pixels, device=sigma.device, dtype=torch.float32)
    target = place.view(1, -1, 1)
    spread = (2 * sigma.view(-1, 1, 1) ** 2).clamp_min(1e-8)
    weights = torch.zeros(len(sigma), pixels, pixels, device=sigma.device)
    for source in (place, -1 - place, 2 * pixels - 1 - place):
        weights += torch.exp(-((target - source.view(1, 1, -1)) ** 2) / spread)
    return weights / weights.sum(2, keepdim=True)
