"""A linear head is the logistic regression that it was fitted as, in the file as well."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from imagekin.errors import InvalidArgumentError
from imagekin.training.export.linear_head import fit_head


def clouds(classes: int, per_class: int = 60) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return unit vectors around random centres, and which centre each is of."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), per_class)
    points = random.normal(size=(classes, 12))[labels] + random.normal(size=(len(labels), 12))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 5])
def test_the_heads_shares_are_those_of_the_regression(classes: int) -> None:
    embeddings, labels = clouds(classes)
    head, penalty = fit_head(embeddings, labels)
    scaled = (embeddings - embeddings.mean(0)) / embeddings.std(0)
    model = LogisticRegression(C=penalty, max_iter=2000).fit(scaled, labels)
    with torch.no_grad():
        shares = torch.softmax(head(torch.from_numpy(embeddings)), 1).numpy()
    assert shares.shape == (len(labels), classes)
    assert np.abs(shares - model.predict_proba(scaled)).max() < 0.01
    assert np.mean(shares.argmax(1) == labels) > 0.85


def test_one_class_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="at least two classes"):
        fit_head(clouds(1)[0], np.zeros(60, np.int64))
