"""The contrastive loss of large batches in tiles: exact, in memory that grows with M and not M².

The value needs two numbers of each anchor: the logarithm of its sum of exponentials, and the mean similarity of its
positives. The latter is z_i·(sum of its group − z_i)/|P(i)|, without looking at pairs. The gradient of the mean over A
anchors is

    ∂L/∂z_i = 1/(A·τ) · ( Σ_j (p_ij + p_ji) z_j − 2·(g_i − z_i)/|P(i)| ),   p_ij = exp(s_ij − logsumexp_i),

where g_i is the sum of i's group, and p_ij is 0 for anchors without positives. The backward pass computes the
similarities of each block again, unless one block holds them all.
"""

from typing import Any

import torch
from torch import Tensor

_TILED_FROM = {"cpu": 256, "cuda": 8192}
"""Vectors from which tiles are faster than the whole matrix (and below which memory is no matter).

On a GPU the whole matrix is quick for longer, and needs no answer from the device in between.
"""

_BLOCK_VALUES = {"cpu": 2**20, "cuda": 2**23}
"""Similarities held at a time: on a CPU so many as stay in its cache."""


def needs_tiles(unit: Tensor) -> bool:
    """Return whether `unit`, [M, P], is large enough for tiles to be worthwhile."""
    return len(unit) >= _TILED_FROM.get(unit.device.type, _TILED_FROM["cuda"])


def tiled_loss(unit: Tensor, groups: Tensor, temperature: float, block_values: int = 0) -> Tensor:
    """Return SupCon's L_out (NT-Xent when groups are pairs), see `contrastive.contrastive_loss`.

    Args:
        unit: float32 or float64 [M, P], of unit length, M >= 2.
        groups: int64 [M].
        temperature: τ.
        block_values: similarities in memory at a time; 0 chooses by the device.
    """
    values = block_values or _BLOCK_VALUES.get(unit.device.type, _BLOCK_VALUES["cuda"])
    loss: Tensor = _TiledLoss.apply(unit, groups, temperature, values)
    return loss


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, unit: Tensor, groups: Tensor, temperature: float, block_values: int) -> Tensor:
        _, group, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
        sums = unit.new_zeros(len(sizes), unit.shape[1]).index_add_(0, group, unit)
        partners = (sizes - 1)[group]
        counted = partners > 0
        # Mean vector of the anchor's positives; its product with the anchor is their mean similarity.
        means = (sums[group] - unit) / partners.clamp_min(1).unsqueeze(1)
        log_sums = torch.empty(len(unit), dtype=unit.dtype, device=unit.device)
        rows = max(1, block_values // len(unit))
        for start in range(0, len(unit), rows):
            block = _similarities(unit, start, rows, temperature)
            log_sums[start : start + rows] = block.logsumexp(1)
        each = log_sums - (unit * means).sum(1) / temperature
        anchors = counted.sum().clamp_min(1)
        ctx.save_for_backward(unit, log_sums, means, counted, anchors, block if len(block) == len(unit) else None)
        ctx.temperature, ctx.rows = temperature, rows
        loss: Tensor = torch.where(counted, each, 0.0).sum() / anchors
        return loss

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        unit, log_sums, means, counted, anchors, whole = ctx.saved_tensors
        # Exponents −logsumexp; an anchor that does not count contributes exp(−∞) = 0.
        exponents = torch.where(counted, -log_sums, -torch.inf)
        gradient = torch.empty_like(unit)
        for start in range(0, len(unit), ctx.rows):
            part = slice(start, start + ctx.rows)
            block = _similarities(unit, start, ctx.rows, ctx.temperature) if whole is None else whole
            both = (block + exponents[part].unsqueeze(1)).exp_()
            both += (block + exponents).exp_()
            torch.mm(both, unit, out=gradient[part])
        # Being positive is mutual, and both vectors of a pair have equally many positives: hence the factor of two. An
        # anchor without positives has a mean of 0. In place, since each of these is as large as all vectors.
        gradient.sub_(means, alpha=2).mul_(slopes[0] / (anchors * ctx.temperature))
        return gradient, None, None, None


def _similarities(unit: Tensor, start: int, rows: int, temperature: float) -> Tensor:
    """Return s_ij of the anchors from `start` on, [rows, M]; −∞ for an anchor with itself."""
    block = (unit[start : start + rows] / temperature) @ unit.T
    block.diagonal(start).fill_(-torch.inf)
    return block
