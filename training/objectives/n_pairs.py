"""N-pairs: one anchor and one positive of each of N classes, every other positive a negative (Sohn 2016)."""

import torch
from torch import Tensor
from torch.nn import functional

from imagekin.training.objectives.contrastive import PairLoss
from imagekin.training.objectives.supcon import SupCon
from imagekin.training.settings import TrainSettings

LENGTH_PENALTY = 0.002
"""Of the squared length of the vectors, which are not of unit length here."""


class NPairs(SupCon):
    """The N-pairs loss of projected features; needs at least two views, or two images of a class in a batch."""

    @classmethod
    def pair_loss(cls, settings: TrainSettings) -> PairLoss:
        """Return the N-pairs loss; it has no settings."""

        def loss(vectors: Tensor, groups: Tensor, sources: Tensor) -> Tensor:
            return n_pairs_loss(vectors, groups)

        return loss

    def chance_loss(self, batch_size: int) -> float | None:
        """Return None: the number of pairs changes with every batch."""
        return None


def n_pairs_loss(vectors: Tensor, groups: Tensor) -> Tensor:
    """Return the multi-class N-pair loss of Sohn 2016, eq. 10, with its penalty on length.

        1/N · Σ_i log(1 + Σ_{j ≠ i} exp(a_i·p_j − a_i·p_i)) + λ/N · Σ_i (|a_i|² + |p_i|²)

    a_i is the first vector of class i in the batch and p_i its last. Classes with one vector are left out.

    Args:
        vectors: float [M, P].
        groups: int64 [M].
    """
    with torch.autocast(vectors.device.type, enabled=False):
        wide = vectors if vectors.dtype == torch.float64 else vectors.float()
        _, group, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
        place = torch.arange(len(group), device=group.device)
        ends = [
            torch.zeros_like(sizes).scatter_reduce_(0, group, place, how, include_self=False)[sizes > 1]
            for how in ("amin", "amax")
        ]
        if not len(ends[0]):
            return wide.sum() * 0.0
        anchors, positives = wide[ends[0]], wide[ends[1]]
        target = torch.arange(len(anchors), device=group.device)
        lengths = anchors.square().sum(1).mean() + positives.square().sum(1).mean()
        return functional.cross_entropy(anchors @ positives.T, target) + LENGTH_PENALTY * lengths
