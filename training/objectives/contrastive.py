"""What the contrastive objectives share: views stacked into one batch, a projection head, the loss over pairs."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.objectives.base import Batch
from training.views import Views


class ProjectionHead(nn.Sequential):
    """Linear, ReLU, linear: features [M, D] to vectors [M, P] (SimCLR, SupCon). Dropped after pretraining."""

    def __init__(self, feature_dim: int, projection_dim: int) -> None:
        super().__init__(
            nn.Linear(feature_dim, feature_dim), nn.ReLU(inplace=True), nn.Linear(feature_dim, projection_dim)
        )


def stack_views(batch: Batch, views: Views, count: int) -> Tensor:
    """Return `count` views of each image, [count·B, 3, S, S]: all first views, then all second ones, and so on."""
    return torch.cat([views(batch.images, batch.generator) for _ in range(count)])


def contrastive_loss(vectors: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """Return the supervised contrastive loss L_out (Khosla et al. 2020, eq. 2), averaged over anchors.

        L_i = −1/|P(i)| · Σ_{p ∈ P(i)} log( exp(z_i·z_p/τ) / Σ_{a ≠ i} exp(z_i·z_a/τ) )

    P(i) are the others of i's group. Anchors that are alone in their group have no P(i) and are left out of the mean;
    when all are, the loss is 0. With pairs as groups this is NT-Xent (Chen et al. 2020). There is no rescaling by
    the temperature, which the reference code has and the paper has not.

    Args:
        vectors: float [M, P], of any length; they are normalised here. Computed in float32, or float64 when given that.
        groups: int64 [M].
        temperature: τ.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        wide = vectors if vectors.dtype == torch.float64 else vectors.float()
        if len(wide) < 2:
            return wide.sum() * 0.0
        unit = functional.normalize(wide, dim=1)
        similarities = unit @ unit.T / temperature
        self_pair = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        # Masked before the sum of exponentials takes its maximum, so that the anchor itself never sets the scale.
        log_sum = similarities.masked_fill(self_pair, -torch.inf).logsumexp(1)
        positive = (groups.view(-1, 1) == groups.view(1, -1)) & ~self_pair
        counts = positive.sum(1)
        mean_positive = (similarities * positive).sum(1) / counts.clamp_min(1)
        counted = counts > 0
        total = torch.where(counted, log_sum - mean_positive, 0.0).sum()
        return total / counted.sum().clamp_min(1)
