"""Recalibrate BatchNorm statistics of an encoder that was not trained on whole images."""

import torch
from torch import nn

from imagekin.training.objectives.base import DeviceData
from imagekin.training.views.geometry import crop_resize
from imagekin.training.views.views import Views

_MOST_IMAGES = 10_000
BATCH = 250


@torch.no_grad()
def recalibrate_norms(encoder: nn.Module, data: DeviceData, views: Views) -> None:
    """Set the encoder's BatchNorm statistics to those of whole images as they are served, averaged over batches.

    Jigsaw and context train on patches only, whose statistics do not fit whole images: with them, accuracy was a few
    points lower. Frozen ones stay. Uses at most the first 10,000 images of a fixed random order.
    """
    kind, frozen = nn.modules.batchnorm._BatchNorm, getattr(encoder, "frozen", ())
    norms = [module for module in encoder.modules() if isinstance(module, kind) and module not in frozen]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    training = encoder.training
    encoder.train()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:_MOST_IMAGES]
    for rows in torch.split(order.to(data.labels.device), BATCH):
        images, _ = data.take(rows)
        whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=images.device).expand(len(images), 4)
        encoder(views.normalise(crop_resize(images, whole, views.size).div_(255)))
    encoder.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
