"""LARS: SGD whose step in each layer is proportional to the norm of its weights (You et al. 2017, arXiv:1708.03888)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

TRUST = 0.001


class LARS(Optimizer):
    """SGD with momentum; gradients of decayed groups are scaled to η·|w| / |g + λ·w|, as SimCLR uses it.

    Groups without weight decay (biases and norms) take plain SGD steps.

    Args:
        params: parameters or groups of them.
        lr: the learning rate; larger than SGD's, some 0.3 per 256 images of a batch.
        momentum: of the steps.
        weight_decay: λ.
    """

    def __init__(self, params: Iterable[Any], lr: float, *, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                change = parameter.grad
                if group["weight_decay"]:
                    change = change.add(parameter, alpha=group["weight_decay"])
                    own, other = parameter.norm(), change.norm()
                    change = change * torch.where((own > 0) & (other > 0), TRUST * own / other, 1.0)
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].mul_(group["momentum"]).add_(change)
                parameter.add_(state["momentum"], alpha=-group["lr"])
        return loss
