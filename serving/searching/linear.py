"""Classify by the logits of a model's linear head."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from imagekin.types import Prediction

_MAX_VOTES = 10


def predict(
    logits: NDArray[np.float32], class_names: Sequence[str], temperature: float, min_confidence: float
) -> Prediction:
    """Predict the class of an image.

    Args:
        logits: float32 [C], finite.
        class_names: the C names.
        temperature: softmax temperature, greater than 0.
        min_confidence: the label is None when the winning share is lower.
    """
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    shares = weights / weights.sum()
    order = sorted(range(len(class_names)), key=lambda at: (-shares[at], class_names[at]))[:_MAX_VOTES]
    votes = tuple((class_names[at], float(shares[at])) for at in order)
    label, confidence = votes[0]
    return Prediction(label if confidence >= min_confidence else None, confidence, 0.0, votes)
