"""An encoder that follows another one slowly: the teacher of MoCo and of self-distillation, and the mean of a run."""

import copy

import torch
from torch import Tensor, nn


class Follower(nn.Module):
    """A copy of `module` without gradients, always in evaluation mode.

    Its BatchNorm uses running statistics, so what it says of one image does not depend on the batch (which is how a
    key could otherwise betray its query).

    Args:
        module: what to copy and follow.
        keep: how much of itself it keeps each step.
    """

    def __init__(self, module: nn.Module, keep: float) -> None:
        super().__init__()
        self.copy = copy.deepcopy(module).requires_grad_(False)
        self._keep = keep
        self.eval()

    def train(self, mode: bool = True) -> "Follower":
        """Stay in evaluation mode."""
        return super().train(False)

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
