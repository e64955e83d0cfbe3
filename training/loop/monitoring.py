"""Monitor a run: write its metrics, and stop it when the loss has collapsed."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from imagekin.errors import FailedPreconditionError
from imagekin.training.loop.seeds import generator
from imagekin.training.objectives.base import DeviceData
from imagekin.training.settings import METRICS_FILE, TrainSettings
from imagekin.training.views.views import Views

logger = logging.getLogger("imagekin.training")

_COLLAPSE_EPOCHS = 3
_COLLAPSE_TOLERANCE = 1e-3
"""The loss has collapsed when it rests so near (relative) to that of chance for so many epochs after the warm-up."""
_NO_LOSS = 5e-4
"""A loss that is shown as 0.000."""
_KNN_SAMPLE = 2000
_TENSORBOARD_FOLDER = "tensorboard"


def check_collapse(settings: TrainSettings, chance: float | None) -> None:
    """Stop a run that learns nothing: no loss from the start, or that of an encoder that tells no images apart.

    Raises:
        FailedPreconditionError: it learns nothing.
    """
    lines = (settings.out / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    losses = [float(json.loads(line)["loss"]) for line in lines]
    if losses[-1] < _NO_LOSS:
        if max(losses) < _NO_LOSS:
            raise FailedPreconditionError(
                "the loss is 0.000 from the first epoch on, so nothing is learnt: do batches hold several images or "
                "views of a class (--batch-size, --num-views, --sampler pk), and several classes?"
            )
        if len(losses) > 1 and losses[-2] >= _NO_LOSS:
            logger.warning("the loss is 0.000 after %d epochs: these images teach nothing more", len(losses))
    if chance is None or chance <= 0:
        return
    after = losses[int(np.ceil(settings.warmup_epochs)) :]
    last = after[-_COLLAPSE_EPOCHS:]
    if len(last) == _COLLAPSE_EPOCHS and all(abs(loss / chance - 1) < _COLLAPSE_TOLERANCE for loss in last):
        raise FailedPreconditionError(
            f"the loss rests at {chance:.3f}, that of an encoder that tells nothing apart: "
            "try a lower --learning-rate, more --warmup-epochs or another --temperature"
        )


def online_knn(encoder: nn.Module, data: DeviceData, views: Views, seed: int) -> float | None:
    """Return the leave-one-out 1-nearest-neighbour accuracy on a fixed sample of the training images.

    It uses no test images, and no choice depends on it; None when there are no labels.
    """
    from imagekin.training.views.geometry import crop_resize

    device = data.labels.device
    rows = torch.randperm(len(data.labels), generator=generator(seed, "knn"))[:_KNN_SAMPLE].to(device)
    rows = rows[data.labels[rows] >= 0]
    if len(rows) < 2:
        return None
    training = encoder.training
    encoder.eval()
    parts = []
    with torch.no_grad():
        for some in torch.split(rows, 500):
            images = data.gather(some)
            whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device).expand(len(images), 4)
            parts.append(encoder(views.normalise(crop_resize(images, whole, views.size).div_(255))))
    encoder.train(training)
    unit = nn.functional.normalize(torch.cat(parts).float(), dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(1)
    labels = data.labels[rows]
    return float((labels[nearest] == labels).float().mean())


def write_tensorboard(run: Path, line: Mapping[str, float | int]) -> None:
    """Add an epoch's metrics to RUN/tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / _TENSORBOARD_FOLDER)) as writer:
        for name, value in line.items():
            if name not in ("epoch", "step"):
                writer.add_scalar(name, value, int(line["epoch"]))
