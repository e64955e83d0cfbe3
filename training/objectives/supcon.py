"""SupCon: views of images of one class attract each other (Khosla et al. 2020, arXiv:2004.11362)."""

from typing import ClassVar, Self

from torch import Tensor

from training.objectives.base import Batch, Inputs, Objective, Setup, Targets
from training.objectives.contrastive import ProjectionHead, contrastive_loss, stack_views
from training.views import Views


class SupCon(Objective):
    """Supervised contrastive learning with any number of views of each image.

    Args:
        views: draws one view of each image.
        feature_dim: number of the encoder's features.
        projection_dim: size of the vectors compared.
        temperature: τ of the loss.
        num_views: views of each image.
    """

    needs_labels: ClassVar[bool] = True

    def __init__(
        self, views: Views, feature_dim: int, projection_dim: int, temperature: float, num_views: int = 2
    ) -> None:
        super().__init__()
        self.head = ProjectionHead(feature_dim, projection_dim)
        self._views = views
        self._temperature = temperature
        self._num_views = num_views

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build it from a run's settings."""
        settings = setup.settings
        return cls(setup.views, setup.feature_dim, settings.projection_dim, settings.temperature, settings.num_views)

    def make_inputs(self, batch: Batch) -> Inputs:
        """Return the views of all images, and each view's class."""
        images = stack_views(batch, self._views, self._num_views)
        return Inputs(images, {"groups": self.groups(batch).repeat(self._num_views)})

    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return L_out of the projected features."""
        return contrastive_loss(self.head(features), targets["groups"], self._temperature)

    def groups(self, batch: Batch) -> Tensor:
        """Return what makes two images alike, int64 [B]: their class."""
        return batch.labels
