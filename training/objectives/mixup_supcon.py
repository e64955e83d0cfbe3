"""Mixup-SupCon: SupCon of mixed images, weighted by the similarity of mixed labels (GenSCL, arXiv:2206.00384)."""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from imagekin.training.loop.distributed import gather, gather_rows
from imagekin.training.objectives.base import Inputs, Setup, Targets, TrainingBatch
from imagekin.training.objectives.contrastive import attraction, stack_views, unit_vectors
from imagekin.training.objectives.mixing import draw_mix, mix_images
from imagekin.training.objectives.supcon import SupCon
from imagekin.training.settings import TrainSettings


class MixupSupCon(SupCon):
    """Cross-entropy between the similarity of two views' labels and the similarity of their vectors.

    With y the mixed one-hot labels, candidate j of anchor i weighs cos(y_i, y_j), normalised over candidates. Without
    mixing (every share 1) this is SupCon's L_out. Each view is mixed with the same view of another image.
    """

    _alpha: float
    _temperature: float
    _class_count: int

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build it from a run's settings; without `mixup` α is 1."""
        objective = super().build(setup)
        objective._configure(setup.settings, setup.class_count)
        return objective

    def make_inputs(self, batch: TrainingBatch) -> Inputs:
        """Return mixed views and their mixed labels, float [V·B, C]."""
        views = stack_views(batch, self._views, self._num_views)
        classes = functional.one_hot(batch.labels, self._class_count).float()
        images, labels = [], []
        for part in torch.split(views, len(batch.labels)):
            mix = draw_mix(len(batch.labels), self._alpha, batch.generator)
            images.append(mix_images(part, mix))
            labels.append(torch.lerp(classes[mix.partners], classes, mix.share.unsqueeze(1)))
        return Inputs(torch.cat(images), {"labels": torch.cat(labels)})

    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return the loss of the projected features."""
        vectors, labels = self.head(features), targets["labels"]
        if self._gathered:
            vectors, labels = gather(vectors), gather_rows(labels)
        return soft_contrastive_loss(vectors, labels, self._temperature)

    def _configure(self, settings: TrainSettings, class_count: int) -> None:
        self._alpha, self._temperature = settings.mixup or 1.0, settings.temperature
        self._class_count = class_count


def soft_contrastive_loss(vectors: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return GenSCL's loss, averaged over anchors.

    Args:
        vectors: float [M, P], of any length.
        labels: float [M, C], at least 0, not all 0 in a row.
        temperature: τ.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit, alike = unit_vectors(vectors), functional.normalize(labels.to(vectors.dtype), dim=1)
        similarities = (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)
        weights = (alike @ alike.T).fill_diagonal_(0.0).to(unit.dtype)
        return attraction(similarities, weights)
