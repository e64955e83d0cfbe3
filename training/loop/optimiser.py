"""The optimiser and its schedule."""

import math
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from imagekin.training.loop.lars import LARS
from imagekin.training.models.encoders import Backbone
from imagekin.training.models.stages import rate_scales
from imagekin.training.settings import TrainSettings

_MOMENTUM = 0.9
_SCALE = "rate_scale"


def build_optimiser(settings: TrainSettings, encoder: Backbone, objective: nn.Module) -> Optimizer:
    """Build the optimiser of all parameters that are trained.

    Weight decay applies to matrices and kernels, not to biases and norms. Each stage of the encoder has a learning rate
    of its own where the settings ask for that; the objective's head has the whole rate.
    """
    scales = rate_scales(encoder, settings.layer_decay) if settings.layer_decay != 1 else {}
    trained = [(each, scales.get(name, 1.0)) for name, each in encoder.named_parameters() if each.requires_grad]
    trained += [(each, 1.0) for each in objective.parameters() if each.requires_grad]
    groups: list[dict[str, Any]] = []
    for scale in sorted({scale for _, scale in trained}, reverse=True):
        own = [parameter for parameter, its in trained if its == scale]
        matrices, others = [p for p in own if p.ndim > 1], [p for p in own if p.ndim <= 1]
        groups.append({"params": matrices, "weight_decay": settings.weight_decay, _SCALE: scale})
        groups.append({"params": others, "weight_decay": 0.0, _SCALE: scale})
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
        group["lr"] = rate * group.get(_SCALE, 1.0)
