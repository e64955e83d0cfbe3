"""Fit the linear head that maps an artifact's embeddings to logits: the linear probe as one layer."""

import numpy as np
import torch
from torch import nn

from imagekin.errors import InvalidArgumentError
from imagekin.training.evaluation.linear_probe import Features, Labels, LinearProbe, choose_penalty


def fit_head(embeddings: Features, labels: Labels, *, seed: int = 0) -> tuple[nn.Linear, float]:
    """Fit a linear probe to embeddings of training images, its penalty chosen on a fifth of them.

    Args:
        embeddings: [N, D] float32 of unit length.
        labels: [N] int, classes 0 to C − 1, each of which occurs; C >= 2.
        seed: of the split.

    Returns:
        The head, D to C, on the CPU, and the inverse strength of the penalty.

    Raises:
        InvalidArgumentError: there is one class only.
    """
    labels = np.asarray(labels)
    if len(np.unique(labels)) < 2:
        raise InvalidArgumentError("a linear head needs training images of at least two classes", field="head")
    penalty = choose_penalty(embeddings, labels, seed=seed)
    weight, bias = LinearProbe.fit(embeddings, labels, penalty).layer()
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
    return head, penalty
