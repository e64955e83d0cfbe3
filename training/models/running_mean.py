"""Exponential moving average of an encoder: the teacher of MoCo and of self-distillation, and the mean of a run."""

import copy

import torch
from torch import Tensor, nn


class Follower(nn.Module):
    """A copy of `module` without gradients, always in the same mode, that follows the module's weights.

    Args:
        module: the module to copy and follow.
        keep: share of its own weights that it keeps each step.
        batch_statistics: whether its BatchNorm uses the statistics of each batch, as the module's does in training;
            else it uses the module's running ones, so that the output for an image does not depend on the batch.
    """

    def __init__(self, module: nn.Module, keep: float, *, batch_statistics: bool = False) -> None:
        super().__init__()
        self.copy = copy.deepcopy(module).requires_grad_(False)
        self._keep = keep
        self._batch_statistics = batch_statistics
        self.train()

    def train(self, mode: bool = True) -> "Follower":
        """Keep the mode that it was built for."""
        return super().train(self._batch_statistics)

    @torch.no_grad()
    def follow(self, module: nn.Module) -> None:
        """Move towards the module's weights, and copy its buffers."""
        torch._foreach_lerp_(list(self.copy.parameters()), list(module.parameters()), 1 - self._keep)
        if own := list(self.copy.buffers()):
            torch._foreach_copy_(own, list(module.buffers()))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Apply the copy to its input."""
        result: Tensor = self.copy(images)
        return result
