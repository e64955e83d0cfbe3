"""The optimiser and its schedule."""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from imagekin.training.loop.lars import LARS
from imagekin.training.settings import TrainSettings

_MOMENTUM = 0.9


def build_optimiser(settings: TrainSettings, modules: Iterable[nn.Module]) -> Optimizer:
    """Build the optimiser of all parameters; weight decay applies to matrices and kernels, not to biases and norms."""
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimiser == "sgd":
        return SGD(groups, lr=settings.learning_rate, momentum=_MOMENTUM, nesterov=True, fused=True)
    if settings.optimiser == "lars":
        return LARS(groups, lr=settings.learning_rate, momentum=_MOMENTUM)
    return AdamW(groups, lr=settings.learning_rate, fused=True)


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the learning rate of a step: linear warm-up to `peak` at step `warmup`, then half a cosine to 0.

    Args:
        step: from 0 to `steps` − 1.
        steps: of the whole run.
        warmup: steps of the linear part, fewer than `steps`.
        peak: the highest rate.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_learning_rate(optimiser: Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimiser.param_groups:
        # A plain number, because a tensor would be saved and loaded as one.
        group["lr"] = rate
