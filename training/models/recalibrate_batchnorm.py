"""BatchNorm statistics measured anew, for an encoder that was trained on something else than whole images."""

import torch
from torch import nn

from imagekin.training.objectives.base import DeviceData
from imagekin.training.views.geometry import crop_resize
from imagekin.training.views.views import Views

MOST_IMAGES = 10_000
BATCH = 250


@torch.no_grad()
def settle_norms(encoder: nn.Module, data: DeviceData, views: Views) -> None:
    """Give the encoder's BatchNorms the statistics of whole images as they are served, the mean over batches.

    Jigsaw and context show the encoder patches only, whose statistics fit no image: features of whole images were worth
    a few points less with them. At most the first 10,000 images of a random order that depends on nothing.
    """
    norms = [module for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    training = encoder.training
    encoder.train()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:MOST_IMAGES]
    for rows in torch.split(order.to(data.labels.device), BATCH):
        images, _ = data.take(rows)
        whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=images.device).expand(len(images), 4)
        encoder(views.normalise(crop_resize(images, whole, views.size).div_(255)))
    encoder.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
