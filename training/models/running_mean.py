"""An encoder that follows another one slowly: the teacher of MoCo and of self-distillation, and the mean of a run."""

import copy

import torch
from torch import Tensor, nn


class Follower(nn.Module):
    """A copy of `module` without gradients, always in the same mode.

    Args:
        module: what to copy and follow.
        keep: how much of itself it keeps each step.
        batch_statistics: whether its BatchNorm takes the statistics of each batch, as the module's does while it
            trains; else the module's running ones, so that what it says of one image does not depend on the batch.
    """

    def __init__(self, module: nn.Module, keep: float, *, batch_statistics: bool = False) -> None:
        super().__init__()
        self.copy = copy.deepcopy(module).requires_grad_(False)
        self._keep = keep
        self._batch_statistics = batch_statistics
        self.train()

    def train(self, mode: bool = True) -> "Follower":
        """Stay in the mode that it was built for."""
        return super().train(self._batch_statistics)

    @torch.no_grad()
    def follow(self, module: nn.Module) -> None:
        """Move towards the module's weights, and take over its buffers."""
        torch._foreach_lerp_(list(self.copy.parameters()), list(module.parameters()), 1 - self._keep)
        if own := list(self.copy.buffers()):
            torch._foreach_copy_(own, list(module.buffers()))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return what the copy makes of its input."""
        result: Tensor = self.copy(images)
        return result
