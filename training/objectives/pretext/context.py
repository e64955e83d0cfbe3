"""Context prediction: locate a patch's neighbour among eight places (Doersch et al. 2015, arXiv:1505.05192)."""

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from imagekin.training.objectives.base import Inputs, Objective, Setup, Targets, TrainingBatch
from imagekin.training.objectives.pretext.patches import CELLS, PATCH_SHARE, cut_patches, patch_side
from imagekin.training.views.views import Views

_CENTRE = CELLS // 2
NEIGHBOURS = CELLS - 1


class Context(Objective):
    """Encode each patch alone, and predict a neighbour's place from the features of both.

    All eight neighbours of a centre are predicted, so the centre's features serve eight pairs.

    Args:
        views: whose normalisation is used.
        image_size: that the encoder is for.
        feature_dim: number of the encoder's features.
    """

    needs_labels: ClassVar[bool] = False
    sees_whole_images: ClassVar[bool] = False

    def __init__(self, views: Views, image_size: int, feature_dim: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Linear(2 * feature_dim, 2 * feature_dim), nn.ReLU(inplace=True), nn.Linear(2 * feature_dim, NEIGHBOURS)
        )
        self._side = patch_side(image_size, PATCH_SHARE)
        self._views = views

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build it from a run's settings."""
        return cls(setup.views, setup.settings.image_size, setup.feature_dim)

    def make_inputs(self, batch: TrainingBatch) -> Inputs:
        """Return [B·9] patches, grouped by image in row order, with the images' numbers."""
        count, device = len(batch.images), batch.images.device
        cells = torch.arange(CELLS, device=device).expand(count, CELLS)
        patches = cut_patches(batch.images, cells, PATCH_SHARE, self._side, batch.generator)
        return Inputs(drop_colours(self._views.normalise(patches), batch.generator), {"rows": batch.rows})

    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return the mean cross-entropy over the eight places."""
        patches = features.reshape(len(targets["rows"]), CELLS, -1)
        centres = patches[:, _CENTRE : _CENTRE + 1].expand(-1, NEIGHBOURS, -1)
        neighbours = torch.cat((patches[:, :_CENTRE], patches[:, _CENTRE + 1 :]), dim=1)
        answers = self.head(torch.cat((centres, neighbours), dim=2)).flatten(0, 1)
        places = torch.arange(NEIGHBOURS, device=features.device).repeat(len(patches))
        return functional.cross_entropy(answers, places)

    def chance_loss(self, batch_size: int) -> float | None:
        """Return log 8."""
        return math.log(NEIGHBOURS)


def drop_colours(patches: Tensor, generator: torch.Generator) -> Tensor:
    """Keep one random channel of each patch; the others become noise of a hundredth of its deviation.

    Otherwise chromatic aberration would tell where in the image a patch comes from.

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
