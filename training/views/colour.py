"""Change the colours of a batch of images, each by its own factor: the photometric half of the views.

Each function takes float images [N, 3, H, W] in [0, 1] of any memory layout, and keeps it. The definitions are those
of torchvision's ColorJitter; gray is ITU-R 601 luma.
"""

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)


def luma(images: Tensor) -> Tensor:
    """Return the luma [N, 1, H, W] of each image."""
    gray = images[:, 0:1] * _LUMA[0]
    return gray.add_(images[:, 1:2], alpha=_LUMA[1]).add_(images[:, 2:3], alpha=_LUMA[2])


def adjust_tone(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Multiply brightness, then contrast about the image's mean gray, then saturation about each pixel's gray.

    The three form one affine map, x → b·c·(s·x + (1 − s)·gray(x)) + (1 − c)·b·mean(gray), clipped once at the end;
    torchvision clips after each.

    Args:
        images: float [N, 3, H, W]; overwritten.
        brightness: factor [N]; 1 changes nothing.
        contrast: factor [N]; 0 is a gray area.
        saturation: factor [N]; 0 is a gray image.
    """
    gray = luma(images)
    mean = gray.mean((1, 2, 3))
    gain = brightness * contrast
    gray.mul_(_each(gain * (1 - saturation))).add_(_each((1 - contrast) * brightness * mean))
    return images.mul_(_each(gain * saturation)).add_(gray).clamp_(0.0, 1.0)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of each image, keeping value and saturation (of HSV).

    This equals a conversion to HSV and back. With M and m the largest and smallest channel and h the
    hue in turns, a channel of the result is M − (M − m)·clip(2 − 6·|n + h|, 0, 1), where |·| is the distance to the
    nearest whole turn and n is 1/2 for red, 1/6 for green, −1/6 for blue.

    Args:
        images: float [N, 3, H, W] in [0, 1].
        turns: [N], in turns: 0 and 1 change nothing, 0.5 gives the opposite colour.
    """
    red, green, blue = images.unbind(1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    spread = largest - torch.minimum(torch.minimum(red, green), blue)
    scale = (1 / 6) / spread.clamp_min(1e-8)
    # The hue, from the two channels that are not the largest; among equal ones red counts as largest, then green.
    hue = torch.where(largest == green, (blue - red).mul_(scale).add_(2 / 6), (red - green).mul_(scale).add_(4 / 6))
    hue = torch.where(largest == red, (green - blue).mul_(scale), hue)
    hue.add_(turns.view(-1, 1, 1))
    result = torch.empty_like(images)
    for channel, offset in enumerate((3 / 6, 1 / 6, -1 / 6)):
        place = hue + offset
        # Rounding is several times faster than a remainder.
        place = place.sub_(place.round()).abs_().mul_(-6.0).add_(2.0).clamp_(0.0, 1.0)
        torch.addcmul(largest, place, spread, value=-1.0, out=result[:, channel])
    return result


def drop_channel(images: Tensor, channels: Tensor, fill: Tensor) -> Tensor:
    """Replace one channel of each image by a constant.

    Args:
        images: float [N, 3, H, W].
        channels: int64 [N], the channel, 0, 1 or 2; any other number leaves the image unchanged.
        fill: constants [3] of the channels, in the units of `images`.
    """
    missing = channels.view(-1, 1) == torch.arange(3, device=images.device)
    return torch.where(missing.view(-1, 3, 1, 1), fill.view(1, 3, 1, 1), images)


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
