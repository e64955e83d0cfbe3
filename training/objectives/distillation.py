"""Self-distillation: a classifier that also learns from a slow copy of itself (mean teacher, arXiv:1703.01780)."""

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn
from torch.nn import functional

from imagekin.training.models.encoders import Backbone
from imagekin.training.models.running_mean import Follower
from imagekin.training.objectives.base import Inputs, Setup, TrainingBatch
from imagekin.training.objectives.classifier import CrossEntropy
from imagekin.training.views.views import Views

TEMPERATURE = 2.0
"""Softens both sides' answers; the gradient is scaled back by its square (Hinton et al. 2015, arXiv:1503.02531)."""


class SelfDistillation(CrossEntropy):
    """(1 − w)·cross-entropy + w·T²·KL(teacher ‖ student), the teacher's weights a running mean of the student's.

    Args:
        encoder: the teacher's initial state.
        teacher_momentum: share of its own weights that the teacher keeps each step.
        weight: w.
        views, feature_dim, class_count, smoothing, mixup: as in `CrossEntropy`.
    """

    def __init__(
        self,
        views: Views,
        encoder: Backbone,
        class_count: int,
        *,
        smoothing: float,
        mixup: float,
        teacher_momentum: float,
        weight: float,
    ) -> None:
        super().__init__(views, encoder.feature_dim, class_count, smoothing=smoothing, mixup=mixup)
        self.teacher = Follower(nn.Sequential(encoder, self.head), teacher_momentum)
        self._weight = weight

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build it from a run's settings."""
        settings = setup.settings
        return cls(
            setup.views,
            setup.encoder,
            setup.class_count,
            smoothing=settings.label_smoothing,
            mixup=settings.mixup,
            teacher_momentum=settings.teacher_momentum,
            weight=settings.distillation,
        )

    def make_inputs(self, batch: TrainingBatch) -> Inputs:
        """Return the classifier's inputs, with the teacher's logits among the targets."""
        inputs = super().make_inputs(batch)
        return Inputs(inputs.images, {**inputs.targets, "teacher": self.teacher(inputs.images)})

    def classify(self, logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of both losses."""
        student = functional.log_softmax(logits / TEMPERATURE, dim=1)
        teacher = functional.log_softmax(targets["teacher"].float() / TEMPERATURE, dim=1)
        distance = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        plain = super().classify(logits, targets)
        return (1 - self._weight) * plain + self._weight * TEMPERATURE**2 * distance

    def after_step(self, encoder: Backbone) -> None:
        """Move the teacher towards the student."""
        self.teacher.follow(nn.Sequential(encoder, self.head))

    def chance_loss(self, batch_size: int) -> float | None:
        """Return None: a student that equals its teacher has not collapsed."""
        return None
