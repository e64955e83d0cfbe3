"""Exemplar: each chosen image with all its views forms a class (Dosovitskiy et al. 2014, arXiv:1406.6909)."""

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from imagekin.training.loop.seeds import generator
from imagekin.training.objectives.base import Inputs, Objective, Setup, Targets, TrainingBatch
from imagekin.training.objectives.contrastive import stack_views
from imagekin.training.views.views import Views


class Exemplar(Objective):
    """A classifier over surrogate classes; only the images chosen for these are shown.

    Args:
        views: draws the views, the strong transformations of the paper.
        feature_dim: number of the encoder's features.
        image_count: N, images in the training set.
        class_count: surrogate classes; N when there are fewer images.
        num_views: views of each image in a batch.
        seed: of the choice.
    """

    needs_labels: ClassVar[bool] = False

    chosen: Tensor

    def __init__(
        self, views: Views, feature_dim: int, image_count: int, class_count: int, num_views: int, seed: int
    ) -> None:
        super().__init__()
        order = torch.randperm(image_count, generator=generator(seed, "exemplars"))
        self.register_buffer("chosen", order[:class_count])
        # A hidden layer, as in the paper, so that the features themselves need not tell thousands of images apart.
        self.head = nn.Sequential(
            nn.Linear(feature_dim, feature_dim), nn.ReLU(inplace=True), nn.Linear(feature_dim, len(self.chosen))
        )
        self._views = views
        self._num_views = num_views

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build it from a run's settings."""
        settings = setup.settings
        return cls(
            setup.views,
            setup.feature_dim,
            setup.image_count,
            settings.surrogate_classes,
            settings.num_views,
            settings.seed,
        )

    def pick(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return one of the chosen images for each row: all of them in turn, whatever the order."""
        return self.chosen[rows % len(self.chosen)]

    def make_inputs(self, batch: TrainingBatch) -> Inputs:
        """Return the views of all images, with their surrogate classes."""
        classes = (batch.rows.view(-1, 1) == self.chosen.view(1, -1)).int().argmax(1)
        return Inputs(stack_views(batch, self._views, self._num_views), {"classes": classes.repeat(self._num_views)})

    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return the mean cross-entropy over surrogate classes."""
        return functional.cross_entropy(self.head(features), targets["classes"])

    def chance_loss(self, batch_size: int) -> float | None:
        """Return log of the number of surrogate classes."""
        return math.log(len(self.chosen))
