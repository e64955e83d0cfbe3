"""Nouns agree with their numbers."""

import pytest

from imagekin.counting import counted


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2936, "image", "2,936 images"),
        (2, "class", "2 classes"),
        (2, "batch", "2 batches"),
        (8, "epoch", "8 epochs"),
        (2, "copy", "2 copies"),
        (2, "key", "2 keys"),
        (1, "copy", "1 copy"),
        (3, ".csv file", "3 .csv files"),
    ],
)
def test_a_noun_agrees_with_its_number(count: int, noun: str, said: str) -> None:
    assert counted(count, noun) == said
