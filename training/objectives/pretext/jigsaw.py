"""Jigsaw: predict the permutation of an image's nine tiles (Noroozi and Favaro 2016, arXiv:1603.09246)."""

import itertools
import math
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from imagekin.training.loop.seeds import derived_seed
from imagekin.training.objectives.base import Inputs, Objective, Setup, Targets, TrainingBatch
from imagekin.training.objectives.pretext.patches import CELLS, PATCH_SHARE, cut_patches, patch_side
from imagekin.training.views.colour import luma
from imagekin.training.views.views import Views

_GRAY_SHARE = 0.3
"""Images shown in gray, so that colour aberration does not give places away."""


class Jigsaw(Objective):
    """Encode each tile alone, and predict the permutation from the features of all nine.

    Args:
        views: whose normalisation is used.
        image_size: that the encoder is for.
        feature_dim: number of the encoder's features.
        permutations: number of permutations to choose from.
        normalise_tiles: whether each tile is normalised on its own, as in the paper, so that brightness and contrast do
            not tell which tiles are adjacent. Otherwise tiles stay as images are served, which gives better features
            of small images.
        seed: of the set of permutations.
    """

    needs_labels: ClassVar[bool] = False
    sees_whole_images: ClassVar[bool] = False

    permutations: Tensor

    def __init__(
        self, views: Views, image_size: int, feature_dim: int, permutations: int, seed: int, *, normalise_tiles: bool
    ) -> None:
        super().__init__()
        orders = permutation_set(permutations, derived_seed(seed, "permutations"))
        self.register_buffer("permutations", orders)
        hidden = 2 * feature_dim
        self.head = nn.Sequential(
            nn.Linear(CELLS * feature_dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, permutations)
        )
        self._side = patch_side(image_size, PATCH_SHARE)
        self._views = views
        self._normalise_tiles = normalise_tiles

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build it from a run's settings."""
        settings = setup.settings
        return cls(
            setup.views,
            settings.image_size,
            setup.feature_dim,
            settings.permutations,
            settings.seed,
            normalise_tiles=settings.normalise_tiles,
        )

    def make_inputs(self, batch: TrainingBatch) -> Inputs:
        """Return [B·9] tiles in a random order, with that order's number."""
        device, count = batch.images.device, len(batch.images)
        orders = torch.randint(len(self.permutations), (count,), generator=batch.generator, device=device)
        tiles = cut_patches(batch.images, self.permutations[orders], PATCH_SHARE, self._side, batch.generator)
        gray = torch.rand(count, generator=batch.generator, device=device) < _GRAY_SHARE
        chosen = gray.repeat_interleave(CELLS).view(-1, 1, 1, 1)
        tiles = torch.where(chosen, luma(tiles), tiles)
        if self._normalise_tiles:
            mean, std = tiles.mean((2, 3), keepdim=True), tiles.std((2, 3), keepdim=True)
            return Inputs((tiles - mean) / std.clamp_min(1e-2), {"orders": orders})
        return Inputs(self._views.normalise(tiles), {"orders": orders})

    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return the mean cross-entropy over permutations."""
        together = features.reshape(len(targets["orders"]), -1)
        return functional.cross_entropy(self.head(together), targets["orders"])

    def chance_loss(self, batch_size: int) -> float | None:
        """Return log of the number of permutations."""
        return math.log(len(self.permutations))


def permutation_set(count: int, seed: int, items: int = CELLS) -> Tensor:
    """Choose permutations that are far apart, int64 [count, items].

    The first one is random. Each further one has the largest minimum Hamming distance to those chosen before; ties go
    to the largest mean distance.

    Args:
        count: number of permutations, at most items!.
        seed: of the first one.
        items: number of items permuted.
    """
    everything = np.array(list(itertools.permutations(range(items))), dtype=np.int8)
    least = np.full(len(everything), items, dtype=np.int64)
    total = np.zeros(len(everything), dtype=np.int64)
    chosen = [int(np.random.default_rng(seed).integers(len(everything)))]
    while len(chosen) < min(count, len(everything)):
        distance = (everything != everything[chosen[-1]]).sum(1)
        least = np.minimum(least, distance)
        total += distance
        chosen.append(int(np.argmax(least * (items * len(everything)) + total)))
    return torch.from_numpy(everything[chosen].astype(np.int64))
