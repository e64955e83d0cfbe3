"""Batches of P classes × K images: full, fair, and the same ones whenever an epoch is asked for again."""

from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from imagekin.errors import InvalidArgumentError
from imagekin.training.data.sampling import ClassSampler
from imagekin.training.objectives.base import DeviceData

LABELS = torch.arange(60) % 10


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    classes=st.integers(1, 8),
    each=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_batch_holds_p_classes_of_k_images_each(sizes: list[int], classes: int, each: int, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)) * 3, torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    sampler = ClassSampler(labels, classes * each, each, seed)
    batches = list(sampler.batches(0))
    assert len(batches) == sampler.batches_per_epoch
    for rows in batches:
        assert len(rows) == sampler.batch_size
        drawn = Counter(labels[rows].tolist())
        assert len(drawn) == min(classes, len(sizes))
        assert set(drawn.values()) == {each}
        for label in drawn:
            images = Counter(rows[labels[rows] == label].tolist())
            assert len(images) == min(each, int((labels == label).sum()))
            assert max(images.values()) - min(images.values()) <= 1


def test_classes_come_equally_often_and_an_epoch_shows_every_image() -> None:
    sampler = ClassSampler(LABELS, 10, 2, seed=0)
    shown = torch.cat(list(sampler.batches(3)))
    assert Counter(LABELS[shown].tolist()) == dict.fromkeys(range(10), 6)
    assert sorted(shown.tolist()) == list(range(60))


def test_an_epoch_is_the_same_again_from_any_batch_and_another_one_differs() -> None:
    sampler = ClassSampler(LABELS, 12, 4, seed=5)
    whole = [rows.tolist() for rows in sampler.batches(1)]
    rest = [rows.tolist() for rows in islice(ClassSampler(LABELS, 12, 4, seed=5).batches(1), 2, None)]
    assert rest == whole[2:]
    assert [rows.tolist() for rows in sampler.batches(2)] != whole
    assert [rows.tolist() for rows in ClassSampler(LABELS, 12, 4, seed=6).batches(1)] != whole


def test_images_without_labels_cannot_be_sampled_by_class() -> None:
    with pytest.raises(InvalidArgumentError, match="--sampler shuffle"):
        ClassSampler(torch.tensor([0, -1]), 4, 2, seed=0)


def test_mirror_images_are_further_images_of_further_classes_in_every_rotation() -> None:
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    data = DeviceData(images, torch.tensor([1, 0, -1]), class_count=2, rotations=4, mirrors=2)
    assert len(data) == 24
    shown, labels = data.take(torch.arange(24))
    assert torch.equal(labels, data.all_labels())
    assert labels.tolist() == [label for copy in range(8) for label in (2 * copy + 1, 2 * copy, -1)]
    for copy in range(8):
        expected = images.flip(3) if copy >= 4 else images
        assert torch.equal(shown[copy * 3 : copy * 3 + 3], expected.rot90(copy % 4, (2, 3)))
    alone = DeviceData(images, torch.tensor([1, 0, -1]), class_count=2, mirrors=2)
    assert torch.equal(alone.take(torch.arange(3, 6))[0], images.flip(3))


def test_rotations_are_further_images_of_further_classes() -> None:
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    data = DeviceData(images, torch.tensor([1, 0, -1]), class_count=2, rotations=4)
    assert len(data) == 12
    assert data.all_labels().tolist() == [1, 0, -1, 3, 2, -1, 5, 4, -1, 7, 6, -1]
    shown, labels = data.take(torch.arange(12))
    assert torch.equal(labels, data.all_labels())
    for turn in range(4):
        assert torch.equal(shown[turn * 3 : turn * 3 + 3], images.rot90(turn, (2, 3)))
