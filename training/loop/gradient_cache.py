"""Gradient caching: gradients of a large batch in the memory of a small one (Gao et al. 2021, arXiv:2101.06983).

The encoder runs over the views in chunks and keeps only the features; the loss over all of them gives the gradient of
each feature; then each chunk runs again, with a backward pass from that gradient. The result is the gradient of the
whole batch, for about a third more work. One difference remains: BatchNorm takes its statistics from a chunk, as it
would in each of several processes, so chunks should have 32 images or more; the running statistics follow chunks, too.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def backward_in_chunks(
    encoder: nn.Module,
    images: Tensor,
    chunk_size: int,
    loss_of: Callable[[Tensor], Tensor],
    autocast: Callable[[], AbstractContextManager[object]],
) -> Tensor:
    """Add the gradient of a loss over all features to the encoder's and the head's parameters.

    Args:
        encoder: in training mode; it must not draw random numbers.
        images: float [M, 3, H, W].
        chunk_size: images in the encoder at a time.
        loss_of: from features float32 [M, D] to a scalar.
        autocast: makes the context that the encoder runs in.

    Returns:
        The loss, detached.
    """
    chunks = torch.split(images, chunk_size)
    with torch.no_grad(), autocast(), _running_statistics_kept(encoder):
        features = torch.cat([encoder(chunk).float() for chunk in chunks])
    features.requires_grad_()
    loss = loss_of(features)
    loss.backward()  # type: ignore[no-untyped-call]
    slopes = features.grad
    if slopes is None:
        slopes = torch.zeros_like(features)
    for chunk, slope in zip(chunks, torch.split(slopes, chunk_size), strict=True):
        with autocast():
            part = encoder(chunk).float()
        part.backward(slope)
    return loss.detach()


@contextmanager
def _running_statistics_kept(encoder: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics unchanged: the second pass over the same images updates them."""
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    kept = [module.track_running_stats for module in norms]
    for module in norms:
        module.track_running_stats = False
    saved = [(module.running_mean, module.running_var, module.num_batches_tracked) for module in norms]
    for module in norms:
        module.running_mean = module.running_var = module.num_batches_tracked = None
    try:
        yield
    finally:
        for module, tracked, values in zip(norms, kept, saved, strict=True):
            module.track_running_stats = tracked
            module.running_mean, module.running_var, module.num_batches_tracked = values
