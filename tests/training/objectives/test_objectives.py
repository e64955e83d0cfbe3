"""The contrastive loss is the paper's, to the last digit that float64 has, and never NaN."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from imagekin.errors import InvalidArgumentError
from imagekin.training.models.encoders import Normalisation
from imagekin.training.objectives.base import TrainingBatch
from imagekin.training.objectives.contrastive import contrastive_loss
from imagekin.training.objectives.registry import OBJECTIVES, find_objective
from imagekin.training.objectives.simclr import SimCLR
from imagekin.training.objectives.supcon import SupCon
from imagekin.training.presets import for_small_images
from imagekin.training.settings import LABELLED, TrainSettings
from imagekin.training.views.views import Views


def equation_2(vectors: Tensor, groups: list[int], temperature: float) -> Tensor:
    """Transcribe L_out of Khosla et al. 2020 with loops, as it stands in the paper."""
    z = [vector / vector.norm() for vector in vectors]
    total, anchors = torch.zeros((), dtype=torch.float64), 0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if groups[p] == groups[i]]
        if not positives:
            continue
        denominator = sum(torch.exp(z[i] @ z[a] / temperature) for a in others)
        terms = [torch.log(torch.exp(z[i] @ z[p] / temperature) / denominator) for p in positives]
        total = total - sum(terms) / len(positives)
        anchors += 1
    return total / max(anchors, 1)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Transcribe NT-Xent of Chen et al. 2020: cross-entropy of picking the partner among all others."""
    z = torch.nn.functional.normalize(torch.cat((first, second)), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    count = len(first)
    partner = torch.cat((torch.arange(count, 2 * count), torch.arange(count)))
    return torch.nn.functional.cross_entropy(logits, partner)


groups_of = st.lists(st.integers(0, 4), min_size=2, max_size=14)


@settings(max_examples=60, deadline=None)
@given(groups=groups_of, seed=st.integers(0, 2**31), temperature=st.sampled_from([0.07, 0.1, 0.5, 1.0]))
def test_value_and_gradient_are_those_of_the_papers_equation(groups: list[int], seed: int, temperature: float) -> None:
    draws = torch.Generator().manual_seed(seed)
    ours = torch.randn(len(groups), 5, generator=draws, dtype=torch.float64).mul_(3).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    value = contrastive_loss(ours, torch.tensor(groups), temperature)
    reference = equation_2(theirs, groups, temperature)
    torch.testing.assert_close(value, reference, rtol=1e-10, atol=1e-12)
    (slope,) = torch.autograd.grad(value, ours)
    if reference.requires_grad:
        (expected,) = torch.autograd.grad(reference, theirs)
        torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-10)
    else:
        assert not slope.any()


def test_float32_agrees_with_the_equation_too() -> None:
    vectors = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    groups = torch.arange(64) % 7
    value = contrastive_loss(vectors, groups, 0.1)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), equation_2(vectors.double(), groups.tolist(), 0.1), rtol=1e-5, atol=0)


def test_one_positive_an_anchor_gives_nt_xent() -> None:
    draws = torch.Generator().manual_seed(1)
    first, second = (torch.randn(10, 6, generator=draws, dtype=torch.float64) for _ in range(2))
    value = contrastive_loss(torch.cat((first, second)), torch.arange(10).repeat(2), 0.2)
    torch.testing.assert_close(value, nt_xent(first, second, 0.2), rtol=1e-12, atol=0)


@settings(max_examples=30, deadline=None)
@given(groups=groups_of, seed=st.integers(0, 2**31))
def test_order_and_names_of_the_groups_do_not_matter(groups: list[int], seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(groups), 5, generator=draws, dtype=torch.float64)
    labels = torch.tensor(groups)
    order = torch.randperm(len(groups), generator=draws)
    value = contrastive_loss(vectors, labels, 0.1)
    torch.testing.assert_close(contrastive_loss(vectors[order], labels[order], 0.1), value)
    torch.testing.assert_close(contrastive_loss(vectors, labels * 7 - 3, 0.1), value)


@pytest.mark.parametrize("groups", [[0], [0, 1, 2, 3], [5, 5, 5, 5], [0, 0, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e3])
def test_no_nan_for_any_grouping_number_format_or_length(groups: list[int], dtype: torch.dtype, scale: float) -> None:
    vectors = (torch.randn(len(groups), 8, generator=torch.Generator().manual_seed(2)) * scale).to(dtype)
    vectors.requires_grad_()
    loss = contrastive_loss(vectors, torch.tensor(groups), 0.05)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert vectors.grad is not None
    assert not vectors.grad.isnan().any()  # of very short vectors it may be too large for half precision: infinite


def test_anchors_without_positives_do_not_thin_the_mean() -> None:
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pair = contrastive_loss(vectors, torch.tensor([0, 0, 1, 2, 3, 4]), 0.1)
    torch.testing.assert_close(pair, equation_2(vectors, [0, 0, 1, 2, 3, 4], 0.1))


def test_the_loss_stays_in_float32_under_autocast() -> None:
    vectors = torch.randn(32, 16, generator=torch.Generator().manual_seed(4))
    groups = torch.arange(32) % 4
    plain = contrastive_loss(vectors, groups, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(vectors, groups, 0.05), plain)


def batch_of(labels: list[int]) -> TrainingBatch:
    images = torch.randint(0, 256, (len(labels), 3, 8, 8), dtype=torch.uint8)
    return TrainingBatch(
        images, torch.tensor(labels), torch.arange(len(labels)) + 100, torch.Generator().manual_seed(0)
    )


def test_without_a_projection_the_features_themselves_are_compared() -> None:
    views = Views.named("none", 8, Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    loss = SupCon.pair_loss(TrainSettings(data="none", out=Path("run"), projection_dim=0))
    objective = SupCon(views, feature_dim=6, projection_dim=0, pair_loss=loss)
    features, targets = torch.randn(8, 6), objective.make_inputs(batch_of([4, 4, 9, 9])).targets
    assert not list(objective.parameters())
    assert torch.equal(objective.loss(features, targets), contrastive_loss(features, targets["groups"], 0.1))


@pytest.mark.parametrize(("kind", "groups"), [(SupCon, [4, 4, 9]), (SimCLR, [100, 101, 102])])
@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_every_image_gives_its_views_and_each_knows_its_group(
    kind: type[SupCon], groups: list[int], num_views: int
) -> None:
    views = Views.named("supcon", 8, Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    loss = kind.pair_loss(TrainSettings(data="none", out=Path("run")))
    objective = kind(views, feature_dim=6, projection_dim=4, pair_loss=loss, num_views=num_views)
    inputs = objective.make_inputs(batch_of([4, 4, 9]))
    assert inputs.images.shape == (3 * num_views, 3, 8, 8)
    assert inputs.targets["groups"].tolist() == groups * num_views
    assert inputs.targets["sources"].tolist() == [100, 101, 102] * num_views
    assert torch.isfinite(objective.loss(torch.randn(3 * num_views, 6), inputs.targets))


def test_an_unknown_objective_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgumentError, match="supcon, "):
        find_objective("supcom")
    assert all(find_objective(name) is kind for name, kind in OBJECTIVES.items())


def test_small_images_are_trained_by_what_suits_each_objective(tmp_path: Path) -> None:
    advice = {name: for_small_images("images", tmp_path, name) for name in OBJECTIVES}
    for name, advised in advice.items():
        assert advised.objective == name
        # A head that is thrown away pays off where no label says what the features are for.
        assert (advised.projection_dim == 0) == OBJECTIVES[name].needs_labels
    assert set(LABELLED) == {name for name in OBJECTIVES if OBJECTIVES[name].needs_labels}
    assert advice["exemplar"].surrogate_classes < advice["supcon"].surrogate_classes
