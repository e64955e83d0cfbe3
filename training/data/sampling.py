"""Choose the images of each batch."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from imagekin.errors import InvalidArgumentError
from imagekin.training.loop.seeds import generator


class Sampler(Protocol):
    """Sampler of batches; the same epoch always gives the same batches.

    Attributes:
        batches_per_epoch: the same for every epoch.
        batch_size: images in each batch.
    """

    batches_per_epoch: int
    batch_size: int

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Yield the rows of each batch, int64 [B], on the CPU."""
        ...


class ShuffleSampler:
    """Shuffle all images anew each epoch and cut them into full batches, dropping the remainder.

    Args:
        count: number of images.
        batch_size: images per batch; all of them when there are fewer.
        seed: of the orders.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self._count = count
        self.batch_size = min(count, batch_size)
        self._seed = seed
        self.batches_per_epoch = count // self.batch_size

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Yield the rows of each batch, int64 [B], on the CPU."""
        order = torch.randperm(self._count, generator=generator(self._seed, "order", epoch))
        yield from order.split_with_sizes(self._sizes())[: self.batches_per_epoch]

    def _sizes(self) -> list[int]:
        full = [self.batch_size] * self.batches_per_epoch
        return [*full, self._count - sum(full)]


class ClassSampler:
    """Draw batches of P classes × K images, so that every anchor has positives however many classes there are (P×K).

    Classes come in random order, none twice in a batch, and all equally often however many images they have. A class
    gives K different images; one with fewer images repeats them as evenly as possible. An epoch has as many batches as
    one over all images.

    Args:
        labels: int64 [N], on the CPU.
        batch_size: P·K; P is the number of classes when there are fewer.
        images_per_class: K.
        seed: of the draws.

    Raises:
        InvalidArgumentError: there are images without a label.
    """

    def __init__(self, labels: Tensor, batch_size: int, images_per_class: int, seed: int) -> None:
        if not len(labels) or int(labels.min()) < 0:
            raise InvalidArgumentError("--sampler pk needs labelled images; use --sampler shuffle", field="sampler")
        classes, sizes = torch.unique(labels, return_counts=True)
        self._rows = torch.split(labels.argsort(stable=True), sizes.tolist())
        self._each = images_per_class
        self._classes = min(batch_size // images_per_class, len(classes))
        self._seed = seed
        self.batch_size = self._classes * images_per_class
        self.batches_per_epoch = max(1, len(labels) // self.batch_size)

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Yield the rows of each batch, int64 [P·K], on the CPU: the K images of a class are consecutive."""
        draws = generator(self._seed, "classes", epoch)
        streams = [self._images(rows, draws) for rows in self._rows]
        classes = self._rounds(draws)
        for _ in range(self.batches_per_epoch):
            yield torch.cat([next(streams[chosen]) for chosen in next(classes)])

    def _rounds(self, draws: torch.Generator) -> Iterator[list[int]]:
        """Yield P classes at a time, in a new order each round; the remainder of a round is dropped."""
        while True:
            order = torch.randperm(len(self._rows), generator=draws).tolist()
            for start in range(0, len(order) - self._classes + 1, self._classes):
                yield order[start : start + self._classes]

    def _images(self, rows: Tensor, draws: torch.Generator) -> Iterator[Tensor]:
        """Yield K images of a class at a time, all different if it has that many."""
        while True:
            order = rows[torch.randperm(len(rows), generator=draws)]
            if len(order) < self._each:
                order = order.repeat(-(-self._each // len(order)))[: self._each]
            for start in range(0, len(order) - self._each + 1, self._each):
                yield order[start : start + self._each]
