"""Mixup: convex combinations of pairs of images (Zhang et al. 2018, arXiv:1710.09412)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mix:
    """Who is mixed with whom.

    Attributes:
        partners: int64 [B], the other image of each.
        share: float [B] in [0, 1], how much of itself each keeps.
    """

    partners: Tensor
    share: Tensor


def draw_mix(count: int, alpha: float, generator: torch.Generator) -> Mix:
    """Draw a partner and a share of Beta(α, α) for each of `count` images, on the generator's device."""
    device = generator.device
    partners = torch.randperm(count, generator=generator, device=device)
    # Torch draws Beta from its global generator only, so NumPy's is seeded from ours.
    seed = int(torch.randint(2**62, (), generator=generator, device=device))
    share = np.random.default_rng(seed).beta(alpha, alpha, count).astype(np.float32)
    return Mix(partners, torch.from_numpy(share).to(device))


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Return share·image + (1 − share)·partner, float [B, 3, H, W]."""
    return torch.lerp(images[mix.partners], images, mix.share.view(-1, 1, 1, 1))
