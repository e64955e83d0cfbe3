"""BatchNorm over several processes, on any device (torch's own SyncBatchNorm refuses a CPU)."""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from imagekin.training.loop.distributed import world_size


class _SyncNorm(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training are those of all processes' images together.

    Every process must have equally many images. The gradient flows through the statistics.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Normalise float [N, C, H, W]."""
        if not self.training or world_size() == 1:
            return super().forward(images)
        wide = images if images.dtype == torch.float64 else images.float()
        sums = torch.cat((wide.mean((0, 2, 3)), wide.square().mean((0, 2, 3))))
        whole: Tensor = _Sum.apply(sums)
        mean, square = (whole / world_size()).chunk(2)
        variance = (square - mean.square()).clamp_min(0)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                count = wide.numel() / wide.shape[1] * world_size()
                self.running_mean.lerp_(mean, self.momentum or 0.1)
                self.running_var.lerp_(variance * (count / max(1.0, count - 1)), self.momentum or 0.1)
                self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        result: Tensor = (wide * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).to(images.dtype)
        return result


def synchronise_norms(module: nn.Module) -> None:
    """Replace every BatchNorm2d within `module` by a `_SyncNorm` with the same parameters, buffers and names."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = _SyncNorm


class _Sum(torch.autograd.Function):
    """Sum over all processes; the gradient is summed as well, since every process's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        total = slopes[0].clone()
        distributed.all_reduce(total)
        return total
