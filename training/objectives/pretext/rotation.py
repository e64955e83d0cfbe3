"""Rotation: predict the quarter turns of an image (RotNet, Gidaris et al. 2018, arXiv:1803.07728)."""

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from imagekin.training.objectives.base import Inputs, Objective, Setup, Targets, TrainingBatch
from imagekin.training.views.views import Views

_TURNS = 4


class Rotation(Objective):
    """Show one view of each image in all four rotations in the same batch, which the paper found to be better.

    Args:
        views: draws the view; a preset that rotates spoils the task.
        feature_dim: number of the encoder's features.
    """

    needs_labels: ClassVar[bool] = False

    def __init__(self, views: Views, feature_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(feature_dim, _TURNS)
        self._views = views

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build it from a run's settings."""
        return cls(setup.views, setup.feature_dim)

    def make_inputs(self, batch: TrainingBatch) -> Inputs:
        """Return [4·B] images: all unturned, then all turned by one quarter, and so on."""
        views = self._views(batch.images, batch.generator)
        turned = torch.cat([views.rot90(turn, (2, 3)) for turn in range(_TURNS)])
        turns = torch.arange(_TURNS, device=views.device).repeat_interleave(len(views))
        return Inputs(turned.contiguous(memory_format=torch.channels_last), {"turns": turns})

    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return the mean cross-entropy over the four turns."""
        return functional.cross_entropy(self.head(features), targets["turns"])

    def chance_loss(self, batch_size: int) -> float | None:
        """Return log 4."""
        return math.log(_TURNS)
