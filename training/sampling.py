"""Which images make up each batch."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from training.randomness import generator


class Sampler(Protocol):
    """Chooses the batches of an epoch, the same ones whenever it is asked for the same epoch.

    Attributes:
        batches_per_epoch: the same for every epoch.
    """

    batches_per_epoch: int

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Yield the rows of each batch, int64 [B], on the CPU."""
        ...


class ShuffleSampler:
    """Every epoch all images in a new order, cut into full batches; what is left over waits for another epoch.

    Args:
        count: images there are.
        batch_size: images a batch; all of them when there are fewer.
        seed: of the orders.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self._count = count
        self._batch_size = min(count, batch_size)
        self._seed = seed
        self.batches_per_epoch = count // self._batch_size

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Yield the rows of each batch, int64 [B], on the CPU."""
        order = torch.randperm(self._count, generator=generator(self._seed, "order", epoch))
        yield from order.split_with_sizes(self._sizes())[: self.batches_per_epoch]

    def _sizes(self) -> list[int]:
        full = [self._batch_size] * self.batches_per_epoch
        return [*full, self._count - sum(full)]
