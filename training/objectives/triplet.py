"""Triplet loss: an anchor nearer to its own class than to others by a margin, with triplets mined within the batch."""

import torch
from torch import Tensor

from imagekin.training.objectives.contrastive import PairLoss, positive_pairs, unit_vectors
from imagekin.training.objectives.supcon import SupCon
from imagekin.training.settings import TrainSettings


class Triplet(SupCon):
    """The triplet loss on Euclidean distances of projected unit vectors; needs `--sampler pk` or several views."""

    @classmethod
    def pair_loss(cls, settings: TrainSettings) -> PairLoss:
        """Return the loss with batch-hard or semi-hard mining and the settings' margin."""
        mine = batch_hard if settings.mining == "hard" else semi_hard

        def loss(vectors: Tensor, groups: Tensor, sources: Tensor) -> Tensor:
            return mine(vectors, groups, settings.margin)

        return loss

    def chance_loss(self, batch_size: int) -> float | None:
        """Return None: the loss of the hardest triplets stays at the margin for a while before they learn."""
        return None


def batch_hard(vectors: Tensor, groups: Tensor, margin: float) -> Tensor:
    """Return the mean over anchors of max(0, margin + farthest positive − nearest negative).

    Source: Hermans et al. 2017, arXiv:1703.07737. Anchors that lack a positive or a negative are left out.

    Args:
        vectors: float [M, P], of any length.
        groups: int64 [M].
        margin: between distances of unit vectors, which are from 0 to 2.
    """
    distances, positive, negative = _pairs(vectors, groups)
    farthest = distances.masked_fill(~positive, -torch.inf).amax(1)
    nearest = distances.masked_fill(~negative, torch.inf).amin(1)
    counted = positive.any(1) & negative.any(1)
    return _mean((margin + farthest - nearest).clamp_min(0), counted)


def semi_hard(vectors: Tensor, groups: Tensor, margin: float) -> Tensor:
    """Return the mean over anchor-positive pairs of max(0, margin + d_ap² − d_an²).

    n is the nearest negative that is farther than the positive; where there is none, the farthest negative. Squared
    distances. Source: Schroff et al. 2015 (FaceNet), arXiv:1503.03832. Arguments as in `batch_hard`.
    """
    distances, positive, negative = _pairs(vectors, groups)
    squared = distances.square()
    ordered = squared.masked_fill(~negative, torch.inf).sort(1).values
    count = negative.sum(1, keepdim=True)
    with torch.no_grad():
        place = torch.searchsorted(ordered.contiguous(), squared.contiguous(), right=True)
        place = torch.minimum(place, count - 1).clamp_min(0)
    chosen = ordered.gather(1, place)
    counted = positive & (count > 0)
    return _mean((margin + squared - torch.where(counted, chosen, 0.0)).clamp_min(0), counted)


def _pairs(vectors: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return all distances [M, M] and the masks of positive and of negative pairs."""
    with torch.autocast(vectors.device.type, enabled=False):
        unit = unit_vectors(vectors)
        # The square root has no gradient at 0, the distance of equal vectors.
        distances = (2 - 2 * unit @ unit.T).clamp_min(1e-8).sqrt()
    own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    positive = positive_pairs(groups)
    return distances, positive, ~positive & ~own


def _mean(losses: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, losses, 0.0).sum() / counted.sum().clamp_min(1)
