"""Interface of objectives: make inputs from a batch of images, own a head, and compute the loss.

The loop knows nothing else of an objective. It calls, each step,

    inputs = objective.make_inputs(batch)              # views, rotations, tiles …, and their targets
    features = encoder(inputs.images)
    loss = objective.loss(features, inputs.targets)    # head and loss, in float32

and around that `begin_epoch` (to make new pseudo-labels), `pick` (to choose the images shown) and `after_step` (to
update a momentum encoder or a queue). An objective is a module: its head's parameters are trained, and its buffers are
saved in the checkpoint.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from imagekin.training.models.encoders import Backbone
from imagekin.training.settings import TrainSettings
from imagekin.training.views.views import Views

Targets = Mapping[str, Tensor]
"""Inputs of a loss beside the features, by name: labels, positions or mixing weights."""


@dataclass(frozen=True, slots=True)
class DeviceData:
    """The training set on the device.

    Attributes:
        images: uint8 [N, 3, H, W], H = W; on the device, or in a memory-mapped file on the host.
        labels: int64 [N], on the device; −1 where there is none.
        class_count: number of classes.
        rotations: copies of each image by quarter turns, 1 or 4; each turn of a class is a class of its own.
        mirrors: 2 when each of those also has a copy mirrored left to right (before it is turned), else 1. Row
            (m·rotations + r)·N + n is image n, mirrored if m, turned by r quarters.
    """

    images: Tensor
    labels: Tensor
    class_count: int
    rotations: int = 1
    mirrors: int = 1

    @property
    def copies(self) -> int:
        """Number of copies of each image, and of each class."""
        return self.rotations * self.mirrors

    def __len__(self) -> int:
        return len(self.labels) * self.copies

    def gather(self, places: Tensor) -> Tensor:
        """Return the images uint8 [B, 3, H, W] at `places`, int64 [B] below N, on the device and as they are stored."""
        if self.images.device == self.labels.device:
            return self.images[places]
        images = self.images[places.cpu()]
        return images.pin_memory().to(self.labels.device, non_blocking=True)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images uint8 [B, 3, H, W] and labels int64 [B] at `rows`, int64 [B]."""
        count = len(self.labels)
        places = rows % count
        images, labels = self.gather(places), self.labels[places]
        if self.copies == 1:
            return images, labels
        copies = rows // count
        if self.mirrors > 1:
            chosen = (copies >= self.rotations).nonzero().squeeze(1)
            images[chosen] = images[chosen].flip(3)
        for turn in range(1, self.rotations):
            chosen = (copies % self.rotations == turn).nonzero().squeeze(1)
            images[chosen] = images[chosen].rot90(turn, (2, 3))
        return images, torch.where(labels < 0, labels, labels + copies * self.class_count)

    def all_labels(self) -> Tensor:
        """Return the label of every row, int64 [len(self)]."""
        each = [torch.where(self.labels < 0, -1, self.labels + copy * self.class_count) for copy in range(self.copies)]
        return torch.cat(each)


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The images of one step.

    Attributes:
        images: uint8 [B, 3, H, W].
        labels: int64 [B]; −1 where there is none.
        rows: int64 [B], each image's place in the training set.
        generator: of everything random in this step, on the images' device.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    generator: torch.Generator


@dataclass(frozen=True, slots=True)
class Inputs:
    """Input of the encoder, and targets of the loss.

    Attributes:
        images: normalised float32 [M, 3, H', W']; M and the sides are the objective's choice.
        targets: for the loss.
    """

    images: Tensor
    targets: Targets


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that an objective is built from.

    Attributes:
        settings: of the run.
        views: draws the views of the settings' preset.
        encoder: with its initial weights; an objective that needs a second one copies it.
        feature_dim: D, number of the encoder's features.
        class_count: number of classes in the training set, rotations and mirror images counted when they are classes.
        image_count: number of images in the training set, likewise.
    """

    settings: TrainSettings
    views: Views
    encoder: Backbone
    feature_dim: int
    class_count: int
    image_count: int


class Objective(nn.Module, ABC):
    """Base of the objectives; see the module's text for when each method is called.

    Attributes:
        needs_labels: whether it learns from class labels.
        sees_whole_images: whether the encoder is trained on whole images, as it is served. Otherwise its BatchNorm
            statistics are recalibrated on whole images after the last epoch, and for the online kNN.
    """

    needs_labels: ClassVar[bool]
    sees_whole_images: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def build(cls, setup: Setup) -> Self:
        """Build it, with random weights of its head from torch's global generator."""

    @abstractmethod
    def make_inputs(self, batch: TrainingBatch) -> Inputs:
        """Make the encoder's input from a batch; all randomness comes from `batch.generator`."""

    @abstractmethod
    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return the loss, a float32 scalar, of features float32 [M, D] (not of unit length)."""

    def pick(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return the rows to show in place of the sampler's, int64 [B]; by default the same."""
        return rows

    def chance_loss(self, batch_size: int) -> float | None:
        """Return the loss of an encoder that tells no images apart, for that batch size; None if unknown.

        Training has collapsed if the loss stays there.
        """
        return None

    def begin_epoch(self, encoder: Backbone, data: DeviceData, epoch: int) -> None:
        """Prepare for an epoch: pseudo-labels, a new head. By default there is nothing to do.

        A run resumed in the middle of an epoch does not call this again, so its results must be kept in buffers.
        """

    def after_step(self, encoder: Backbone) -> None:
        """Update what follows the encoder's weights: a momentum encoder, a queue. By default there is nothing to do."""
