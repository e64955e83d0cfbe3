"""Shared parts of the contrastive objectives: stacked views, a projection head, the losses over pairs.

In all losses here z are unit vectors, s_ij = z_i·z_j/τ, and the positives P(i) of an anchor i are the others of its
group. Anchors without positives are left out of the mean; when none has any, the loss is 0. As in SupCon's paper, and
unlike its reference code, losses are not rescaled by the temperature.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from imagekin.training.objectives.base import TrainingBatch
from imagekin.training.objectives.tiled import needs_tiles, tiled_loss
from imagekin.training.settings import LossForm
from imagekin.training.views.views import Views


class ProjectionHead(nn.Sequential):
    """Linear, ReLU, linear: features [M, D] to vectors [M, P] (SimCLR, SupCon). Dropped after pretraining.

    A projection_dim of 0 means no head: the features themselves are compared.
    """

    def __init__(self, feature_dim: int, projection_dim: int) -> None:
        super().__init__()
        if projection_dim:
            self.append(nn.Linear(feature_dim, feature_dim))
            self.append(nn.ReLU(inplace=True))
            self.append(nn.Linear(feature_dim, projection_dim))


def stack_views(batch: TrainingBatch, views: Views, count: int) -> Tensor:
    """Return `count` views of each image, [count·B, 3, S, S]: all first views, then all second ones, and so on."""
    return views(batch.images, batch.generator, count)


def contrastive_loss(
    vectors: Tensor,
    groups: Tensor,
    temperature: float,
    *,
    form: LossForm = "out",
    max_positives: int = 0,
    sources: Tensor | None = None,
) -> Tensor:
    """Return the supervised contrastive loss (Khosla et al. 2020, eq. 2 and 3), averaged over anchors.

        out: L_i = −1/|P(i)| · Σ_{p ∈ P(i)} log( exp(s_ip) / Σ_{a ≠ i} exp(s_ia) )
        in:  L_i = −log( 1/|P(i)| · Σ_{p ∈ P(i)} exp(s_ip) / Σ_{a ≠ i} exp(s_ia) )

    With pairs as groups both are NT-Xent (Chen et al. 2020). Large batches are computed in tiles, which is exact.

    Args:
        vectors: float [M, P], of any length; they are normalised here. Computed in float32, or float64 when given that.
        groups: int64 [M]; or bool [M, C], the labels of each, where sharing one makes a positive.
        temperature: τ.
        form: `out` or `in`.
        max_positives: number of positives of an anchor, those of its own source first; the others stay in the
            denominator, as in the paper's ablation. 0 is all.
        sources: int64 [M], the image of each vector; needed to put other views of it first.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = unit_vectors(vectors)
        if len(unit) < 2:
            return unit.sum() * 0.0
        if form == "out" and not max_positives and groups.ndim == 1 and needs_tiles(unit):
            return tiled_loss(unit, groups, temperature)
        similarities = unit @ unit.T / temperature
        positive = positive_pairs(groups)
        if max_positives:
            positive = _capped(positive, max_positives, sources)
        # Masked before logsumexp takes the maximum, so that the anchor itself never sets the scale.
        masked = similarities.fill_diagonal_(-torch.inf)
        return attraction(masked, positive) if form == "out" else _inner_attraction(masked, positive)


def sincere_loss(vectors: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """Return SINCERE (Feeney and Hughes 2023, arXiv:2309.14277), averaged over anchors.

        L_i = −1/|P(i)| · Σ_{p ∈ P(i)} log( exp(s_ip) / (exp(s_ip) + Σ_{n ∉ P(i) ∪ {i}} exp(s_in)) )

    SupCon's denominator holds the other positives too, so that an anchor repels its own class; this one does not.
    Arguments as in `contrastive_loss`.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = unit_vectors(vectors)
        similarities = unit @ unit.T / temperature
        positive = positive_pairs(groups)
        own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        # −1e4 and not −∞, whose exp is 0 as well: without negatives an infinite maximum would make the gradient NaN.
        negatives = similarities.masked_fill(positive | own, -1e4).logsumexp(1, keepdim=True)
        pairs = functional.softplus(negatives - similarities.masked_fill(own, 0.0))
        return _mean_over_anchors((pairs * positive).sum(1) / positive.sum(1).clamp_min(1), positive)


def attraction(similarities: Tensor, weights: Tensor) -> Tensor:
    """Return the cross-entropy of each anchor's positives among its candidates, averaged over anchors.

    Args:
        similarities: float [A, K], divided by τ; −∞ for those that are no candidates.
        weights: [A, K], at least 0: weight of each candidate as a positive; bool for plain positives.
    """
    total = weights.sum(1)
    wanted = torch.where(weights > 0, similarities, 0.0) * weights
    each = similarities.logsumexp(1) - wanted.sum(1) / torch.where(total > 0, total, 1.0)
    return _mean_over_anchors(each, weights > 0)


def positive_pairs(groups: Tensor) -> Tensor:
    """Return the matrix of positive pairs, bool [M, M], from int64 groups [M] or bool labels [M, C]."""
    one_each = groups.ndim == 1
    positive = groups.view(-1, 1) == groups.view(1, -1) if one_each else groups.float() @ groups.float().T > 0
    return positive.fill_diagonal_(False)


def unit_vectors(vectors: Tensor) -> Tensor:
    """Return the vectors scaled to length 1, in float32, or float64 when given that."""
    return functional.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=1)


def _inner_attraction(similarities: Tensor, positive: Tensor) -> Tensor:
    """Return L_in; a row without positives gets a finite placeholder, so that no gradient is NaN."""
    some = positive.any(1, keepdim=True)
    chosen = similarities.masked_fill(~positive & some, -torch.inf).masked_fill(~some, 0.0)
    counts = positive.sum(1).clamp_min(1).to(similarities.dtype)
    return _mean_over_anchors(similarities.logsumexp(1) - chosen.logsumexp(1) + counts.log(), positive)


def _capped(positive: Tensor, most: int, sources: Tensor | None) -> Tensor:
    """Keep `most` positives of each anchor: those of its own source, then those that follow it in the batch.

    The order of a batch is random, so the choice is random without further draws.
    """
    count = len(positive)
    place = torch.arange(count, device=positive.device)
    order = (place.view(1, -1) - place.view(-1, 1)) % count
    if sources is not None:
        order = torch.where(sources.view(-1, 1) == sources.view(1, -1), order - count, order)
    first = order.masked_fill(~positive, 2 * count).topk(min(most, count), dim=1, largest=False).indices
    return torch.zeros_like(positive).scatter_(1, first, True) & positive


def _mean_over_anchors(each: Tensor, positive: Tensor) -> Tensor:
    counted = positive.any(1)
    return torch.where(counted, each, 0.0).sum() / counted.sum().clamp_min(1)


PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From vectors [M, P], groups [M] and sources [M] to a scalar."""
