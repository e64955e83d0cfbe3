"""SupCon: views of images of one class attract each other (Khosla et al. 2020, arXiv:2004.11362)."""

import math
from typing import ClassVar, Self

from torch import Tensor

from imagekin.training.loop.distributed import gather, gather_rows, world_size
from imagekin.training.objectives.base import Inputs, Objective, Setup, Targets, TrainingBatch
from imagekin.training.objectives.contrastive import PairLoss, ProjectionHead, contrastive_loss, stack_views
from imagekin.training.settings import TrainSettings
from imagekin.training.views.views import Views


class SupCon(Objective):
    """Supervised contrastive learning with any number of views of each image.

    Args:
        views: draws one view of each image.
        feature_dim: number of the encoder's features.
        projection_dim: size of the vectors compared; 0 compares the features.
        pair_loss: the loss of vectors, their groups and their images.
        num_views: views of each image.
        gathered: with several processes, whether vectors are compared with those of all of them.
    """

    needs_labels: ClassVar[bool] = True

    def __init__(
        self,
        views: Views,
        feature_dim: int,
        projection_dim: int,
        pair_loss: PairLoss,
        num_views: int = 2,
        *,
        gathered: bool = True,
    ) -> None:
        super().__init__()
        self.head = ProjectionHead(feature_dim, projection_dim)
        self._views = views
        self._pair_loss = pair_loss
        self._num_views = num_views
        self._gathered = gathered

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build it from a run's settings."""
        settings = setup.settings
        return cls(
            setup.views,
            setup.feature_dim,
            settings.projection_dim,
            cls.pair_loss(settings),
            settings.num_views,
            gathered=settings.gather == "all",
        )

    @classmethod
    def pair_loss(cls, settings: TrainSettings) -> PairLoss:
        """Return the loss over pairs of vectors that the settings choose."""

        def loss(vectors: Tensor, groups: Tensor, sources: Tensor) -> Tensor:
            return contrastive_loss(
                vectors,
                groups,
                settings.temperature,
                form=settings.loss_form,
                max_positives=settings.max_positives,
                sources=sources,
            )

        return loss

    def make_inputs(self, batch: TrainingBatch) -> Inputs:
        """Return the views of all images, with each view's class and image."""
        images = stack_views(batch, self._views, self._num_views)
        groups = self.groups(batch).repeat(self._num_views)
        return Inputs(images, {"groups": groups, "sources": batch.rows.repeat(self._num_views)})

    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return the loss over pairs of the projected features."""
        vectors, groups, sources = self.head(features), targets["groups"], targets["sources"]
        if self._gathered:
            vectors, groups, sources = gather(vectors), gather_rows(groups), gather_rows(sources)
        return self._pair_loss(vectors, groups, sources)

    def chance_loss(self, batch_size: int) -> float | None:
        """Return log of the number of candidates, the loss when all vectors are equal."""
        count = batch_size * self._num_views // (1 if self._gathered else world_size())
        return math.log(count - 1) if count > 2 else None

    def groups(self, batch: TrainingBatch) -> Tensor:
        """Return the group of each image, int64 [B]: its class."""
        return batch.labels
