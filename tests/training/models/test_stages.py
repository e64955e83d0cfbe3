"""Freezing and rates go by an encoder's stages, whoever wrote the encoder."""

from pathlib import Path

import pytest
import torch
from torch import nn

from imagekin.errors import InvalidArgumentError
from imagekin.training.models.encoders import Backbone, build_encoder
from imagekin.training.models.named import RANDOM, build_named, load_named
from imagekin.training.models.names import find_name
from imagekin.training.models.stages import freeze, rate_scales, recompute, stages_of

NAMES = ("timm:test_resnet", "timm:test_efficientnet", "timm:test_vit", "timm:test_convnext", "torchvision:resnet18")


def encoder(name: str) -> Backbone:
    torch.manual_seed(0)
    return load_named(find_name(name), weights=Path(RANDOM)).backbone if ":" in name else build_encoder(name, 32)


def learn(backbone: Backbone) -> None:
    """Take one large step on noise."""
    optimiser = torch.optim.SGD([each for each in backbone.parameters() if each.requires_grad], lr=0.1)
    backbone.train()
    side = 160 if hasattr(backbone, "body") else 32
    backbone(torch.randn(4, 3, side, side)).square().sum().backward()
    optimiser.step()


@pytest.mark.parametrize("name", [*NAMES, "tiny", "resnet18", "strokes"])
def test_every_parameter_belongs_to_one_stage_and_the_stem_to_the_first(name: str) -> None:
    backbone = encoder(name)
    stages = stages_of(backbone)
    names = [each for each, _ in backbone.named_parameters()]
    assert sorted(each for stage in stages for each in stage) == sorted(names)
    assert len(stages) > 2
    assert names[0] in stages[0]
    assert names[-1] in stages[-1]


def test_lite0_has_a_stem_and_seven_stages() -> None:
    backbone, _ = build_named(find_name("efficientnet-lite0"))
    assert len(stages_of(backbone)) == 8


@pytest.mark.parametrize("name", ["timm:test_efficientnet", "torchvision:resnet18", "tiny"])
def test_frozen_stages_stay_as_they_are_and_the_others_learn(name: str) -> None:
    backbone = encoder(name)
    first = {each for stage in stages_of(backbone)[:2] for each in stage}
    before = {each: value.clone() for each, value in backbone.state_dict().items()}
    freeze(backbone, 2, norms=False)
    learn(backbone)
    after = backbone.state_dict()
    assert all(torch.equal(before[each], after[each]) for each in first)
    # With a frozen norm's weights go its statistics.
    norms = {each.rpartition(".")[0] for each in first}
    kept = [each for each in before if each.endswith("running_mean") and each.rpartition(".")[0] in norms]
    assert kept
    assert all(torch.equal(before[each], after[each]) for each in kept)
    learned = [each for each, _ in backbone.named_parameters() if each not in first]
    assert any(not torch.equal(before[each], after[each]) for each in learned)


def test_frozen_norms_keep_their_statistics_and_learn_scale_and_shift() -> None:
    backbone = encoder("timm:test_efficientnet")
    before = {each: value.clone() for each, value in backbone.state_dict().items()}
    freeze(backbone, 0, norms=True)
    learn(backbone)
    after = backbone.state_dict()
    statistics = [each for each in before if "running" in each]
    assert statistics
    assert all(torch.equal(before[each], after[each]) for each in statistics)
    norm = statistics[-1].rpartition(".")[0]
    assert not torch.equal(before[f"{norm}.weight"], after[f"{norm}.weight"])
    assert all(module.training for module in backbone.modules() if isinstance(module, nn.Conv2d))


def test_freezing_everything_is_refused() -> None:
    backbone = encoder("tiny")
    count = len(stages_of(backbone))
    freeze(backbone, count - 1, norms=False)
    with pytest.raises(InvalidArgumentError, match=f"--freeze must be below {count}"):
        freeze(backbone, count, norms=False)


@pytest.mark.parametrize("name", ["timm:test_vit", "tiny"])
def test_the_rate_falls_by_the_decay_from_stage_to_stage(name: str) -> None:
    backbone = encoder(name)
    scales = rate_scales(backbone, 0.5)
    for place, stage in enumerate(reversed(stages_of(backbone))):
        assert {scales[each] for each in stage} == {0.5**place}


def test_recomputing_changes_no_gradient() -> None:
    plain, again = encoder("timm:test_vit"), encoder("timm:test_vit")
    recompute(again)
    images = torch.randn(2, 3, 160, 160)
    for backbone in (plain, again):
        backbone.train()
        backbone(images).square().sum().backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert one.grad is not None
        assert torch.equal(one.grad, other.grad) if other.grad is not None else False


def test_an_encoder_that_cannot_recompute_is_told_of_what_can() -> None:
    with pytest.raises(InvalidArgumentError, match="--chunk-size"):
        recompute(encoder("tiny"))
