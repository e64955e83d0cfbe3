"""Cross-entropy and SupCon together: one classifies the features, the other compares the same features.

Each makes up for the other where images are few and the encoder has learned from others already: cross-entropy moves
every class apart from all others at once, SupCon keeps images of one class near one another, which is what nearest
neighbours are asked. With `pk` batches one view of each image is enough, at half the cost of two.
"""

from typing import ClassVar, Self

from torch import Tensor

from imagekin.errors import InvalidArgumentError
from imagekin.training.models.encoders import Backbone
from imagekin.training.objectives.base import DeviceData, Inputs, Objective, Setup, Targets, TrainingBatch
from imagekin.training.objectives.classifier import CrossEntropy
from imagekin.training.objectives.supcon import SupCon


class Joint(Objective):
    """The sum of cross-entropy and weighted SupCon.

    Args:
        classifier: cross-entropy on the features.
        contrast: SupCon on the features, or on a projection of them.
        weight: of SupCon.
    """

    needs_labels: ClassVar[bool] = True

    def __init__(self, classifier: CrossEntropy, contrast: SupCon, weight: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.contrast = contrast
        self._weight = weight

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build it from a run's settings."""
        if setup.settings.mixup:
            raise InvalidArgumentError("--mixup is not for the joint objective", field="mixup")
        return cls(CrossEntropy.build(setup), SupCon.build(setup), setup.settings.contrastive_weight)

    def begin_epoch(self, encoder: Backbone, data: DeviceData, epoch: int) -> None:
        """Check that every image has a label, as cross-entropy does."""
        self.classifier.begin_epoch(encoder, data, epoch)

    def make_inputs(self, batch: TrainingBatch) -> Inputs:
        """Return the views of all images and what SupCon is told of them; a view's group is its label."""
        return self.contrast.make_inputs(batch)

    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return the sum of both losses."""
        classified = self.classifier.loss(features, {"labels": targets["groups"]})
        return classified + self._weight * self.contrast.loss(features, targets)

    def chance_loss(self, batch_size: int) -> float | None:
        """Return the sum of both."""
        first, second = self.classifier.chance_loss(batch_size), self.contrast.chance_loss(batch_size)
        return None if first is None or second is None else first + self._weight * second
