"""The stages of an encoder, from the stem on: what freezing and a learning rate for each stage go by."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from imagekin.errors import InvalidArgumentError
from imagekin.training.models.encoders import Backbone

_NORM: type[nn.Module] = nn.modules.batchnorm._BatchNorm
_CONTAINERS = (nn.Sequential, nn.ModuleList)


def stages_of(backbone: Backbone) -> list[list[str]]:
    """Return the names of a backbone's parameters by stage, first the stem's.

    timm says what the stages of its models are. Other models are taken as their top-level modules, those of a
    sequence one by one.
    """
    body = backbone.get_submodule("body") if hasattr(backbone, "body") else backbone
    prefix = "body." if body is not backbone else ""
    if hasattr(body, "group_matcher"):
        from timm.models import group_parameters

        matched: Any = body
        groups = group_parameters(matched, matched.group_matcher(coarse=True))
        return [[prefix + name for name in groups[key]] for key in sorted(groups)]
    stages: dict[str, list[str]] = {}
    for name, _ in body.named_parameters():
        stages.setdefault(_stage(body, name), []).append(prefix + name)
    return list(stages.values())


def freeze(backbone: Backbone, stages: int, *, norms: bool) -> None:
    """Keep the first stages of a backbone as they are, and if asked all means and variances of its BatchNorms.

    Args:
        backbone: changed: frozen weights have no gradient, frozen modules stay in evaluation mode.
        stages: how many, 0 to all but the last.
        norms: whether to keep every BatchNorm's statistics; their scales and shifts are still trained.

    Raises:
        InvalidArgumentError: nothing would be left to train.
    """
    found = stages_of(backbone)
    if stages >= len(found):
        raise InvalidArgumentError(f"--freeze must be below {len(found)}, the encoder's stages", field="freeze")
    kept = {name for stage in found[:stages] for name in stage}
    for name, parameter in backbone.named_parameters():
        if name in kept:
            parameter.requires_grad_(False)
    frozen = []
    for path, module in backbone.named_modules():
        own = {f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)}
        # Dropout in a frozen stage would only add noise.
        if (isinstance(module, _NORM) and norms) or (own and own <= kept):
            frozen.append(module)
    backbone.frozen = tuple(frozen)


def rate_scales(backbone: Backbone, decay: float) -> dict[str, float]:
    """Return the factor of each parameter's learning rate by name: 1 in the last stage, `decay` before it."""
    return dict(_scales(stages_of(backbone), decay))


def recompute(backbone: Backbone) -> None:
    """Compute a backbone's forward pass again for the gradients instead of keeping it.

    Raises:
        InvalidArgumentError: it cannot.
    """
    body: Any = getattr(backbone, "body", None)
    if not hasattr(body, "set_grad_checkpointing"):
        raise InvalidArgumentError(
            "--recompute is for timm's encoders; others save memory with a smaller --batch-size, or --chunk-size",
            field="recompute",
        )
    try:
        body.set_grad_checkpointing(True)
    except (AssertionError, NotImplementedError) as error:
        raise InvalidArgumentError(f"this encoder cannot recompute: {error}", field="recompute") from error


def _scales(stages: list[list[str]], decay: float) -> Iterator[tuple[str, float]]:
    for place, names in enumerate(stages):
        yield from ((name, decay ** (len(stages) - 1 - place)) for name in names)


def _stage(body: nn.Module, name: str) -> str:
    """Return the path of the module whose stage a parameter belongs to."""
    path, module = [], body
    for part in name.split(".")[:-1]:
        path.append(part)
        module = module.get_submodule(part)
        if not isinstance(module, _CONTAINERS):
            break
    return ".".join(path)
