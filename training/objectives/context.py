"""Context prediction: a patch and one of its eight neighbours; tell which (Doersch et al. 2015, arXiv:1505.05192)."""

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.objectives.base import Batch, Inputs, Objective, Setup, Targets
from training.objectives.patches import CELLS, cut_patches, patch_side
from training.views import Views

PATCH_SHARE = 2 / 3
"""96 of 144 pixels: half a patch of gap, as in the paper, within which the patch's place is drawn."""
CENTRE = CELLS // 2
NEIGHBOURS = CELLS - 1


class Context(Objective):
    """The encoder sees both patches alone; a head sees both features and names the neighbour's place.

    Args:
        views: whose normalisation is used.
        image_size: that the encoder is for.
        feature_dim: number of the encoder's features.
    """

    needs_labels: ClassVar[bool] = False

    def __init__(self, views: Views, image_size: int, feature_dim: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Linear(2 * feature_dim, 2 * feature_dim), nn.ReLU(inplace=True), nn.Linear(2 * feature_dim, NEIGHBOURS)
        )
        self._side = patch_side(image_size)
        self._views = views

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build it from a run's settings."""
        return cls(setup.views, setup.settings.image_size, setup.feature_dim)

    def make_inputs(self, batch: Batch) -> Inputs:
        """Return [B·2] patches, centre and neighbour of an image together, and the neighbours' places, 0 to 7."""
        device = batch.images.device
        places = torch.randint(NEIGHBOURS, (len(batch.images),), generator=batch.generator, device=device)
        neighbours = places + (places >= CENTRE)
        cells = torch.stack((torch.full_like(neighbours, CENTRE), neighbours), dim=1)
        patches = cut_patches(batch.images, cells, PATCH_SHARE, self._side, batch.generator)
        return Inputs(drop_colours(self._views.normalise(patches), batch.generator), {"places": places})

    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return the mean cross-entropy over the eight places."""
        return functional.cross_entropy(self.head(features.reshape(len(targets["places"]), -1)), targets["places"])

    def chance_loss(self, batch_size: int) -> float | None:
        """Return log 8."""
        return math.log(NEIGHBOURS)


def drop_colours(patches: Tensor, generator: torch.Generator) -> Tensor:
    """Keep one channel of each patch, a drawn one; the others become noise of a hundredth of its deviation.

    A lens shifts the colours against each other by an amount that tells where in the image a patch is from.

    Args:
        patches: float [N, 3, H, W].
        generator: of all draws.
    """
    count = len(patches)
    kept = torch.randint(3, (count,), generator=generator, device=generator.device)
    spread = patches[torch.arange(count, device=patches.device), kept].std((1, 2)).view(-1, 1, 1, 1) / 100
    noise = torch.randn(patches.shape, generator=generator, device=generator.device) * spread
    own = functional.one_hot(kept, 3).bool().view(-1, 3, 1, 1)
    return torch.where(own, patches, noise)
