"""The other forms of the contrastive loss keep to their papers' equations and to the laws that those prove."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from imagekin.training.objectives.contrastive import attraction, contrastive_loss, positive_pairs, sincere_loss
from imagekin.training.objectives.tiled import tiled_loss

groups_of = st.lists(st.integers(0, 4), min_size=2, max_size=12)


def draw(count: int, seed: int = 0, dim: int = 5) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def transcribed(kind: str, vectors: Tensor, groups: list[int], temperature: float) -> Tensor:
    """Transcribe L_in (Khosla et al. 2020, eq. 3) and SINCERE (Feeney and Hughes 2023, eq. 6) with loops."""
    z = [vector / vector.norm() for vector in vectors]
    total, anchors = torch.zeros((), dtype=torch.float64), 0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if groups[p] == groups[i]]
        negatives = [n for n in others if groups[n] != groups[i]]
        if not positives:
            continue
        e = {a: torch.exp(z[i] @ z[a] / temperature) for a in others}
        if kind == "in":
            total = total - torch.log(
                sum((e[p] for p in positives), torch.zeros(())) / len(positives) / sum(e.values())
            )
        else:
            low = sum((e[n] for n in negatives), torch.zeros(()))
            total = total - torch.stack([torch.log(e[p] / (e[p] + low)) for p in positives]).mean()
        anchors += 1
    return total / max(anchors, 1)


def ours(kind: str, vectors: Tensor, groups: Tensor, temperature: float) -> Tensor:
    if kind == "in":
        return contrastive_loss(vectors, groups, temperature, form="in")
    if kind == "sincere":
        return sincere_loss(vectors, groups, temperature)
    return tiled_loss(torch.nn.functional.normalize(vectors, dim=1), groups, temperature, block_values=13)


def slope(value: Tensor, vectors: Tensor) -> Tensor:
    return torch.autograd.grad(value, vectors)[0] if value.requires_grad else torch.zeros_like(vectors)


@pytest.mark.parametrize("kind", ["in", "sincere"])
@settings(max_examples=40, deadline=None)
@given(groups=groups_of, seed=st.integers(0, 2**31), temperature=st.sampled_from([0.07, 0.1, 0.5]))
def test_value_and_gradient_are_the_papers(kind: str, groups: list[int], seed: int, temperature: float) -> None:
    mine = draw(len(groups), seed).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    value, reference = (
        ours(kind, mine, torch.tensor(groups), temperature),
        transcribed(kind, theirs, groups, temperature),
    )
    torch.testing.assert_close(value, reference, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope(value, mine), slope(reference, theirs), rtol=1e-6, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(groups=groups_of, seed=st.integers(0, 2**31), temperature=st.sampled_from([0.01, 0.1, 0.5]))
def test_tiles_give_the_value_and_gradient_of_the_whole(groups: list[int], seed: int, temperature: float) -> None:
    first = draw(len(groups), seed).requires_grad_()
    second = first.detach().clone().requires_grad_()
    tiled = ours("tiled", first, torch.tensor(groups), temperature)
    whole = contrastive_loss(second, torch.tensor(groups), temperature)
    torch.testing.assert_close(tiled, whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slope(tiled, first), slope(whole, second), rtol=1e-7, atol=1e-10)


def test_large_batches_are_tiled_and_agree_in_float32() -> None:
    vectors = draw(1500, dim=16).float().requires_grad_()
    groups = torch.arange(1500) % 40
    tiled = contrastive_loss(vectors, groups, 0.1)
    assert "Tiled" in type(tiled.grad_fn).__name__
    whole = contrastive_loss(vectors, torch.nn.functional.one_hot(groups).bool(), 0.1)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=0)
    one, other = slope(tiled, vectors), slope(whole, vectors)
    assert (one - other).norm() / other.norm() < 1e-5


@pytest.mark.parametrize("kind", ["in", "sincere"])
def test_one_positive_gives_nt_xent_in_every_form(kind: str) -> None:
    vectors, groups = draw(10), torch.arange(5).repeat(2)
    torch.testing.assert_close(ours(kind, vectors, groups, 0.2), contrastive_loss(vectors, groups, 0.2))


@settings(max_examples=20, deadline=None)
@given(groups=groups_of, seed=st.integers(0, 2**31))
def test_jensen_orders_the_forms(groups: list[int], seed: int) -> None:
    """The paper's inequality: L_in ≤ L_out; and SINCERE's denominator is a part of SupCon's, so it is below, too."""
    vectors, labels = draw(len(groups), seed), torch.tensor(groups)
    out = contrastive_loss(vectors, labels, 0.1)
    assert ours("in", vectors, labels, 0.1) <= out + 1e-9
    assert ours("sincere", vectors, labels, 0.1) <= out + 1e-9


@pytest.mark.parametrize("kind", ["in", "sincere", "tiled"])
@pytest.mark.parametrize("groups", [[0, 1, 2, 3], [5, 5, 5, 5], [0, 0, 1], [0, 0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_no_nan_for_any_grouping_and_number_format(kind: str, groups: list[int], dtype: torch.dtype) -> None:
    vectors = draw(len(groups)).to(dtype).requires_grad_()
    loss = ours(kind, vectors if kind != "tiled" else vectors.float(), torch.tensor(groups), 0.05)
    assert torch.isfinite(loss)
    assert torch.isfinite(slope(loss, vectors)).all()


def test_a_class_does_not_repel_itself_in_sincere() -> None:
    """With a single class SupCon still pulls at unequal positives; SINCERE is at its minimum, 0."""
    assert float(sincere_loss(draw(6), torch.zeros(6, dtype=torch.int64), 0.1)) == pytest.approx(0, abs=1e-12)
    assert float(contrastive_loss(draw(6), torch.zeros(6, dtype=torch.int64), 0.1)) > 1


def on_circle(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def pull(positive: float, negative: float, which: int) -> float:
    """Return how strongly one pair moves the anchor (at 0°, tangentially) when the other pair is where it is."""
    unit = on_circle(0, positive, negative)
    anchor = unit[:1].clone().requires_grad_()
    similarities = anchor @ unit[1:].T / 0.5
    probability = similarities.softmax(1).detach()
    weight = probability - torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    contribution = weight[0, which] * unit[1 + which] / 0.5
    (whole,) = torch.autograd.grad(attraction(similarities, torch.tensor([[True, False]])), anchor)
    torch.testing.assert_close(whole[0], (weight @ unit[1:] / 0.5)[0])
    tangential = contribution - (contribution @ unit[0]) * unit[0]
    return float(tangential.norm())


def test_hard_positives_and_negatives_dominate_easy_ones() -> None:
    """Khosla et al. 2020, section 3.2.3: a positive at right angles pulls hard, one near the anchor hardly at all."""
    assert pull(90, 120, 0) > 10 * pull(3, 120, 0)
    assert pull(60, 90, 1) > 10 * pull(60, 177, 1)
    assert pull(60, 70, 1) > 10 * pull(60, 177, 1)


@pytest.mark.parametrize(("positive", "negative"), [(60, 40), (80, 20), (20, 80), (50, 45)])
def test_triplet_is_the_limit_of_one_positive_and_one_negative(positive: float, negative: float) -> None:
    """2τ·L → max(0, |a − p|² − |a − n|²) for τ → 0, and L → log 2 + (|a − p|² − |a − n|²)/(4τ) for large τ."""
    unit = on_circle(0, positive, negative)
    difference = float((unit[0] - unit[1]).square().sum() - (unit[0] - unit[2]).square().sum())

    def loss(temperature: float) -> float:
        return float(attraction((unit[:1] @ unit[1:].T) / temperature, torch.tensor([[True, False]])))

    assert 2e-4 * loss(1e-4) == pytest.approx(max(0.0, difference), abs=1e-3)
    assert loss(50.0) == pytest.approx(math.log(2) + difference / 200, abs=1e-4)


def test_the_cap_keeps_the_own_image_first_and_the_others_in_the_denominator() -> None:
    vectors, sources = draw(12), torch.arange(6).repeat(2)
    classes = torch.zeros(12, dtype=torch.int64)
    capped = contrastive_loss(vectors, classes, 0.1, max_positives=1, sources=sources)
    torch.testing.assert_close(capped, contrastive_loss(vectors, sources, 0.1))
    many = contrastive_loss(vectors, classes, 0.1, max_positives=11, sources=sources)
    torch.testing.assert_close(many, contrastive_loss(vectors, classes, 0.1))
    assert torch.isfinite(contrastive_loss(vectors, classes % 5, 0.1, max_positives=3, form="in"))


def test_sharing_one_of_many_labels_makes_a_positive() -> None:
    labels = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]).bool()
    assert positive_pairs(labels).nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [2, 0]]
    one_each = torch.tensor([0, 1, 0, 2, 1])
    multi = torch.nn.functional.one_hot(one_each).bool()
    vectors = draw(5)
    torch.testing.assert_close(contrastive_loss(vectors, multi, 0.1), contrastive_loss(vectors, one_each, 0.1))


def test_order_does_not_matter_in_any_form() -> None:
    vectors, groups, order = draw(12), torch.arange(12) % 4, torch.randperm(12)
    for kind in ("in", "sincere", "tiled"):
        torch.testing.assert_close(ours(kind, vectors, groups, 0.1), ours(kind, vectors[order], groups[order], 0.1))
