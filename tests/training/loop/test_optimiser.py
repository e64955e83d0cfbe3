"""The schedule, the batches and the seeds are what they are said to be."""

from pathlib import Path

import pytest
import torch
from torch import nn

from imagekin.training.data.sampling import ShuffleSampler
from imagekin.training.loop.optimiser import build_optimiser, learning_rate
from imagekin.training.loop.seeds import derived_seed, generator
from imagekin.training.models.encoders import build_encoder
from imagekin.training.presets import recommended
from imagekin.training.settings import TrainSettings


def test_the_rate_rises_linearly_then_falls_along_half_a_cosine() -> None:
    rates = [learning_rate(step, 100, 10, 2.0) for step in range(100)]
    assert rates[:3] == pytest.approx([2 / 11, 4 / 11, 6 / 11])
    assert rates[10] == max(rates) == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_a_run_of_one_step_has_a_rate() -> None:
    assert learning_rate(0, 1, 0, 0.5) == 0.5


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_biases_and_norms_do_not_decay(name: str) -> None:
    encoder = build_encoder("tiny", 16)
    head = nn.Linear(4, 2)
    settings = TrainSettings.from_dict({**recommended("digits", Path("run")).to_dict(), "optimiser": name})
    optimiser = build_optimiser(settings, encoder, head)
    decayed, free = optimiser.param_groups
    assert decayed["weight_decay"] == settings.weight_decay
    assert free["weight_decay"] == 0
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in free["params"]} == {1}
    assert len(decayed["params"]) + len(free["params"]) == len([*encoder.parameters(), *head.parameters()])


@pytest.mark.parametrize(("count", "size", "batches"), [(10, 3, 3), (9, 3, 3), (5, 8, 1), (1, 4, 1)])
def test_an_epoch_shows_each_image_at_most_once_in_full_batches(count: int, size: int, batches: int) -> None:
    sampler = ShuffleSampler(count, size, seed=0)
    rows = list(sampler.batches(epoch=0))
    assert len(rows) == sampler.batches_per_epoch == batches
    assert {len(part) for part in rows} == {min(size, count)}
    seen = torch.cat(rows).tolist()
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(count))


def test_orders_differ_by_epoch_and_seed_and_are_the_same_when_asked_again() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        rows: list[int] = torch.cat(list(ShuffleSampler(50, 10, seed).batches(epoch))).tolist()
        return rows

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


def test_seeds_of_different_purposes_and_places_differ() -> None:
    seeds = {derived_seed(seed, purpose, place) for seed in range(5) for purpose in ("a", "b") for place in range(5)}
    assert len(seeds) == 50
    assert all(0 <= seed < 2**63 for seed in seeds)
    first, second = (torch.rand(3, generator=generator(0, "step", 7)) for _ in range(2))
    assert torch.equal(first, second)
