"""A residual head on embeddings, and its training.

    z = (x − μ) + f(x − μ)    f linear, or linear, ReLU, linear; f(0) = 0 at first

so that training starts from the embedding itself, centred. z is scaled to unit length afterwards.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from imagekin.progress import progress
from imagekin.training.adaptation.settings import AdaptSettings
from imagekin.training.objectives.contrastive import contrastive_loss
from imagekin.training.objectives.triplet import semi_hard

_JOINT_WEIGHT = 0.5
_MARGIN = 0.2
_SMOOTHING = 0.1
_SCALE = 16.0
"""Factor of a cosine as a logit: without it a softmax of cosines could not come near to certainty."""


class ResidualHead(nn.Module):
    """Map embeddings [N, D] to adapted ones [N, D] of unit length.

    Args:
        mean: [D], of the embeddings of the training images.
        hidden: width of the hidden layer; 0 is one linear map.
    """

    mean: Tensor

    def __init__(self, mean: Tensor, hidden: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        dim = len(mean)
        last = nn.Linear(hidden or dim, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.change = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), last) if hidden else last

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings, float32 [N, D] of unit length."""
        centred = embeddings - self.mean
        adapted: Tensor = functional.normalize(centred + self.change(centred), dim=1, eps=1e-12)
        return adapted

    def apply_to(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map embeddings outside of training."""
        with torch.inference_mode():
            adapted: NDArray[np.float32] = self(torch.from_numpy(embeddings)).numpy()
        return adapted


def train_head(embeddings: NDArray[np.float32], labels: NDArray[np.int64], settings: AdaptSettings) -> ResidualHead:
    """Train a head on embeddings of images and of views of them.

    Each step takes one view of each of its images: near copies in a batch would teach little.

    Args:
        embeddings: float32 [V, N, D] of unit length.
        labels: [N], classes 0 to C − 1.
        settings: of the adaptation.
    """
    torch.manual_seed(settings.seed)
    draws = torch.Generator().manual_seed(settings.seed)
    x, y = torch.from_numpy(embeddings), torch.from_numpy(labels)
    view_count, image_count, dim = x.shape
    head = ResidualHead(x[0].mean(0), dim if settings.head == "mlp" else 0)
    prototypes = nn.Linear(dim, int(y.max()) + 1, bias=False)
    parameters = [*head.parameters(), *prototypes.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    size = min(settings.batch_size, image_count)
    steps = settings.epochs * (image_count // size)
    with progress("adapting", steps) as advance:
        for epoch in range(settings.epochs):
            order = torch.randperm(image_count, generator=draws)
            for place in range(image_count // size):
                rows = order[place * size : (place + 1) * size]
                views = torch.randint(view_count, (size,), generator=draws)
                step = epoch * (image_count // size) + place
                for group in optimiser.param_groups:
                    group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                loss = _loss(head(x[views, rows]), y[rows], prototypes, settings)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                advance(1)
    return head.eval()


def _loss(vectors: Tensor, labels: Tensor, prototypes: nn.Linear, settings: AdaptSettings) -> Tensor:
    if settings.objective == "triplet":
        return semi_hard(vectors, labels, _MARGIN)
    total = vectors.new_zeros(())
    if settings.objective != "supcon":
        cosines = functional.linear(vectors, functional.normalize(prototypes.weight, dim=1))
        total = functional.cross_entropy(_SCALE * cosines, labels, label_smoothing=_SMOOTHING)
    if settings.objective != "cross-entropy":
        weight = 1.0 if settings.objective == "supcon" else _JOINT_WEIGHT
        total = total + weight * contrastive_loss(vectors, labels, settings.temperature)
    return total
