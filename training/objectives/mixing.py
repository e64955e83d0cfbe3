"""Mixup: convex combinations of pairs of images (Zhang et al. 2018, arXiv:1710.09412)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mix:
    """Partners and shares of mixed images.

    Attributes:
        partners: int64 [B], the other image of each.
        share: float [B] in [0, 1], the share of each image in its mixture.
    """

    partners: Tensor
    share: Tensor


def draw_mix(count: int, alpha: float, generator: torch.Generator) -> Mix:
    """Draw a partner and a share of Beta(α, α) for each of `count` images, on the generator's device."""
    device = generator.device
    partners = torch.randperm(count, generator=generator, device=device)
    # Beta from two gammas, because torch's own Beta takes no generator; in float64, where small α does not underflow.
    shape = torch.full((2, count), alpha, dtype=torch.float64, device=device)
    one, other = torch._standard_gamma(shape, generator=generator).unbind(0)
    return Mix(partners, (one / (one + other)).float())


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Return share·image + (1 − share)·partner, float [B, 3, H, W]."""
    return torch.lerp(images[mix.partners], images, mix.share.view(-1, 1, 1, 1))
