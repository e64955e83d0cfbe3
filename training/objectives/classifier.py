"""Cross-entropy on class labels, with label smoothing and mixup: the baseline, and the base of other classifiers."""

import math
from typing import ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional

from imagekin.errors import InvalidArgumentError
from imagekin.training.models.encoders import Backbone
from imagekin.training.objectives.base import DeviceData, Inputs, Objective, Setup, Targets, TrainingBatch
from imagekin.training.objectives.mixing import draw_mix, mix_images
from imagekin.training.views.views import Views


class CrossEntropy(Objective):
    """A linear classifier on the features of one view of each image; the features are exported, not the logits.

    Args:
        views: draws the view.
        feature_dim: number of the encoder's features.
        class_count: number of classes.
        smoothing: part of the target that is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567).
        mixup: α of the Beta distribution that pairs of images and targets are mixed by (Zhang et al. 2018,
            arXiv:1710.09412); 0 is no mixing.
    """

    needs_labels: ClassVar[bool] = True

    def __init__(
        self, views: Views, feature_dim: int, class_count: int, *, smoothing: float = 0.0, mixup: float = 0.0
    ) -> None:
        super().__init__()
        self.head = nn.Linear(feature_dim, class_count)
        self._views = views
        self._class_count = class_count
        self._smoothing = smoothing
        self._mixup = mixup

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build it from a run's settings."""
        settings = setup.settings
        return cls(
            setup.views,
            setup.feature_dim,
            setup.class_count,
            smoothing=settings.label_smoothing,
            mixup=settings.mixup,
        )

    def begin_epoch(self, encoder: Backbone, data: DeviceData, epoch: int) -> None:
        """Check all labels once; checking those of each step would wait for the device.

        Raises:
            InvalidArgumentError: there are images without a label.
        """
        if bool((data.labels < 0).any()):
            raise InvalidArgumentError("there are images without a label; this objective learns from labels")

    def make_inputs(self, batch: TrainingBatch) -> Inputs:
        """Return one view of each image, mixed with another if mixup is on."""
        images = self._views(batch.images, batch.generator)
        if not self._mixup:
            return Inputs(images, {"labels": batch.labels})
        mix = draw_mix(len(images), self._mixup, batch.generator)
        targets = {"labels": batch.labels, "others": batch.labels[mix.partners], "share": mix.share}
        return Inputs(mix_images(images, mix), targets)

    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return the mean cross-entropy."""
        return self.classify(self.head(features), targets)

    def classify(self, logits: Tensor, targets: Targets) -> Tensor:
        """Return the mean cross-entropy of logits float32 [B, C]."""

        def against(labels: Tensor) -> Tensor:
            return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=self._smoothing)

        if "share" not in targets:
            return against(targets["labels"]).mean()
        share = targets["share"]
        return (share * against(targets["labels"]) + (1 - share) * against(targets["others"])).mean()

    def chance_loss(self, batch_size: int) -> float | None:
        """Return log of the number of classes."""
        return math.log(self._class_count)
