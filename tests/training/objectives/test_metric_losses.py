"""Triplets, N-pairs, mixed labels and queues: each is what its paper says, by loops over the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from imagekin.training.models.encoders import Normalisation, build_encoder
from imagekin.training.models.running_mean import Follower
from imagekin.training.objectives.base import TrainingBatch
from imagekin.training.objectives.classifier import CrossEntropy
from imagekin.training.objectives.contrastive import contrastive_loss
from imagekin.training.objectives.mixing import draw_mix, mix_images
from imagekin.training.objectives.mixup_supcon import soft_contrastive_loss
from imagekin.training.objectives.moco import MoCo, SupMoCo
from imagekin.training.objectives.n_pairs import LENGTH_PENALTY, n_pairs_loss
from imagekin.training.objectives.triplet import batch_hard, semi_hard
from imagekin.training.views.views import Views

MARGIN = 0.3
VIEWS = Views.named("supcon", 8, Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))

groups_of = st.lists(st.integers(0, 3), min_size=2, max_size=10)


def draw(count: int, seed: int = 0, dim: int = 4) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mined(vectors: Tensor, groups: list[int], *, hard: bool) -> float:
    z = torch.nn.functional.normalize(vectors, dim=1)
    distance = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").tolist()
    losses = []
    for a, row in enumerate(distance):
        positives = [p for p in range(len(z)) if p != a and groups[p] == groups[a]]
        negatives = sorted(row[n] for n in range(len(z)) if groups[n] != groups[a])
        if not positives or not negatives:
            continue
        if hard:
            losses.append(max(0.0, MARGIN + max(row[p] for p in positives) - negatives[0]))
            continue
        for p in positives:
            farther = [d for d in negatives if d > row[p]]
            losses.append(max(0.0, MARGIN + row[p] ** 2 - (farther[0] if farther else negatives[-1]) ** 2))
    return float(sum(losses) / max(1, len(losses)))


@settings(max_examples=60, deadline=None)
@given(groups=groups_of, seed=st.integers(0, 2**31))
def test_triplets_are_mined_as_by_loops(groups: list[int], seed: int) -> None:
    vectors = draw(len(groups), seed)
    labels = torch.tensor(groups)
    assert float(batch_hard(vectors, labels, MARGIN)) == pytest.approx(mined(vectors, groups, hard=True), abs=1e-6)
    assert float(semi_hard(vectors, labels, MARGIN)) == pytest.approx(mined(vectors, groups, hard=False), abs=1e-6)


@pytest.mark.parametrize("groups", [[0], [0, 0, 0], [0, 1, 2], [0, 0, 1]])
@pytest.mark.parametrize("same", [True, False])
def test_no_mined_loss_is_nan_even_where_vectors_are_equal(groups: list[int], same: bool) -> None:
    for loss_of in (batch_hard, semi_hard, lambda v, g, _: n_pairs_loss(v, g)):
        vectors = (torch.ones(len(groups), 4) if same else draw(len(groups)).float()).requires_grad_()
        loss = loss_of(vectors, torch.tensor(groups), MARGIN)
        (slope,) = torch.autograd.grad(loss, vectors)
        assert torch.isfinite(loss)
        assert torch.isfinite(slope).all()


def test_n_pairs_is_equation_10() -> None:
    vectors, groups = draw(7), [3, 5, 3, 9, 5, 3, 1]
    a, p = vectors[[0, 1]], vectors[[5, 4]]  # classes 3 and 5: first and last of each; 9 and 1 are alone
    terms = [torch.log(1 + torch.exp(a[i] @ p[1 - i] - a[i] @ p[i])) for i in range(2)]
    length = (a.square().sum() + p.square().sum()) / 2
    expected = sum(terms) / 2 + LENGTH_PENALTY * length
    torch.testing.assert_close(n_pairs_loss(vectors, torch.tensor(groups)), expected)


def test_mixed_labels_that_are_not_mixed_give_supcon() -> None:
    vectors, groups = draw(12), torch.arange(12) % 4
    labels = torch.nn.functional.one_hot(groups).double()
    torch.testing.assert_close(soft_contrastive_loss(vectors, labels, 0.1), contrastive_loss(vectors, groups, 0.1))


def test_mixed_labels_attract_in_proportion_to_what_they_share() -> None:
    vectors = draw(3)
    labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    z = torch.nn.functional.normalize(vectors, dim=1)
    s = z @ z.T / 0.2
    weights = {0: {1: 1.0, 2: 0.0}, 1: {0: 0.6 / 1.4, 2: 0.8 / 1.4}, 2: {0: 0.0, 1: 1.0}}
    each = [sum(w * (torch.stack([s[i, k] for k in row]).logsumexp(0) - s[i, j]) for j, w in row.items())
            for i, row in weights.items()]  # fmt: skip
    torch.testing.assert_close(soft_contrastive_loss(vectors, labels, 0.2), sum(each) / 3)


def test_mixing_is_convex_and_smoothing_and_mixing_are_the_expected_cross_entropy() -> None:
    draws = torch.Generator().manual_seed(0)
    mix = draw_mix(200, 0.4, draws)
    assert 0 <= float(mix.share.min()) <= float(mix.share.max()) <= 1
    assert sorted(mix.partners.tolist()) == list(range(200))
    images = torch.rand(200, 3, 2, 2)
    mixed = mix_images(images, mix)
    torch.testing.assert_close(mixed[7], mix.share[7] * images[7] + (1 - mix.share[7]) * images[mix.partners[7]])
    objective = CrossEntropy(VIEWS, 4, 5, smoothing=0.1, mixup=0.4)
    logits, labels = draw(6, dim=5).float(), torch.tensor([0, 1, 2, 3, 4, 0])
    mix = draw_mix(6, 0.4, draws)
    loss = objective.classify(logits, {"labels": labels, "others": labels[mix.partners], "share": mix.share})
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    soft = torch.lerp(one_hot[mix.partners], one_hot, mix.share.unsqueeze(1)) * 0.9 + 0.1 / 5
    torch.testing.assert_close(loss, -(soft * logits.log_softmax(1)).sum(1).mean())


def batch_of(labels: list[int]) -> TrainingBatch:
    images = torch.randint(0, 256, (len(labels), 3, 8, 8), dtype=torch.uint8)
    return TrainingBatch(images, torch.tensor(labels), torch.arange(len(labels)), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "groups"), [(MoCo, [0, 1, 2]), (SupMoCo, [7, 7, 9])])
def test_the_queue_holds_the_newest_keys_with_their_groups(kind: type[MoCo], groups: list[int]) -> None:
    encoder = build_encoder("tiny", 8)
    objective = kind(VIEWS, encoder, 4, 0.1, queue_size=5, teacher_momentum=0.9)
    seen = []
    for _ in range(3):
        inputs = objective.make_inputs(batch_of([7, 7, 9]))
        assert torch.isfinite(objective.loss(torch.randn(3, encoder.feature_dim), inputs.targets))
        objective.after_step(encoder)
        seen += list(inputs.targets["keys"])
    # Nine keys went into five places: the newest stand at the place before the next one to be written.
    order = (torch.arange(5) + objective.queue_place) % 5
    assert torch.equal(objective.queue[order], torch.stack(seen[-5:]))
    assert objective.queue_groups[order].tolist() == (groups * 3)[-5:]
    assert {"queue", "queue_groups", "queue_place"} <= set(objective.state_dict())


def test_a_key_in_the_queue_counts_as_one_in_the_batch() -> None:
    """A full queue of known keys gives SupCon's rectangular loss over batch and queue."""
    objective = SupMoCo(VIEWS, build_encoder("tiny", 8), 4, 0.2, queue_size=2, teacher_momentum=0.9)
    objective.queue.copy_(torch.nn.functional.normalize(draw(2), dim=1))
    objective.queue_groups.copy_(torch.tensor([1, 2]))
    features = torch.randn(2, 128)
    keys, groups = torch.nn.functional.normalize(draw(2, 1).float(), dim=1), torch.tensor([1, 3])
    q = torch.nn.functional.normalize(objective.head(features), dim=1)
    s = q @ torch.cat((keys, objective.queue)).T / 0.2
    expected = (s[0].logsumexp(0) - (s[0, 0] + s[0, 2]) / 2 + s[1].logsumexp(0) - s[1, 1]) / 2
    torch.testing.assert_close(objective.loss(features, {"keys": keys, "groups": groups}), expected)


def test_a_follower_keeps_its_share_and_never_trains() -> None:
    leader = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    follower = Follower(leader, 0.75)
    before = follower.copy.state_dict()["0.weight"].clone()
    with torch.no_grad():
        next(leader.parameters()).add_(1.0)
        leader(torch.randn(8, 2))
    follower.train()
    follower.follow(leader)
    after = follower.copy.state_dict()
    torch.testing.assert_close(after["0.weight"], before + 0.25)
    assert torch.equal(after["1.running_mean"], leader.state_dict()["1.running_mean"])
    assert not follower.copy.training
    assert not any(parameter.requires_grad for parameter in follower.parameters())


def test_keys_are_normalised_as_queries_are() -> None:
    """Running statistics lag behind; at the first step they are those of no image at all."""
    encoder = build_encoder("tiny", 8)
    objective = MoCo(VIEWS, encoder, 4, 0.1, queue_size=5, teacher_momentum=0.9)
    objective.eval().train()
    images = torch.randn(6, 3, 8, 8)
    expected = objective.head(encoder.train()(images))
    torch.testing.assert_close(objective.teacher(images), expected)
    assert not any(parameter.requires_grad for parameter in objective.teacher.parameters())
