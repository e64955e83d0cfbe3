"""The interface of objectives: how one makes inputs from a batch of images, its head, its loss.

The loop knows nothing else of an objective. It calls, each step,

    inputs = objective.make_inputs(batch)              # views, rotations, tiles …, and what is to be told of them
    features = encoder(inputs.images)
    loss = objective.loss(features, inputs.targets)    # head and loss, in float32

and around that `begin_epoch` (where pseudo-labels are made anew) and `after_step` (where a momentum encoder or a queue
follows). An objective is a module: its head's parameters are trained, and whatever it keeps in buffers is in the
checkpoint.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from training.encoders import Encoder
from training.settings import TrainSettings
from training.views import Views

Targets = Mapping[str, Tensor]
"""What a loss needs beside the features, by name: labels, positions, mixing weights …"""


@dataclass(frozen=True, slots=True)
class DeviceData:
    """The training set on the device.

    Attributes:
        images: uint8 [N, 3, H, W].
        labels: int64 [N]; −1 where there is none.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Batch:
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
    """What the encoder is shown, and what the loss is told.

    Attributes:
        images: normalised float32 [M, 3, H', W']; M and the sides are the objective's choice.
        targets: for the loss.
    """

    images: Tensor
    targets: Targets


@dataclass(frozen=True, slots=True)
class Setup:
    """What an objective is built from.

    Attributes:
        settings: of the run.
        views: draws the views of the settings' preset.
        feature_dim: D, number of the encoder's features.
        class_count: number of classes in the training set.
        image_count: number of images in the training set.
    """

    settings: TrainSettings
    views: Views
    feature_dim: int
    class_count: int
    image_count: int


class Objective(nn.Module, ABC):
    """Base of the objectives; see the module's text for when each method is called.

    Attributes:
        needs_labels: whether it learns from class labels.
    """

    needs_labels: ClassVar[bool]

    @classmethod
    @abstractmethod
    def build(cls, setup: Setup) -> Self:
        """Build it, its head with random weights from torch's global generator."""

    @abstractmethod
    def make_inputs(self, batch: Batch) -> Inputs:
        """Make what the encoder is shown from a batch; everything random comes from `batch.generator`."""

    @abstractmethod
    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return the loss, a float32 scalar, of features float32 [M, D] (not of unit length)."""

    def begin_epoch(self, encoder: Encoder, data: DeviceData, epoch: int) -> None:
        """Prepare for an epoch: pseudo-labels, a new head. By default there is nothing to do.

        A run that goes on in the middle of an epoch does not come here again, so what this makes belongs in buffers.
        """

    def after_step(self, encoder: Encoder) -> None:
        """Follow the encoder after its weights changed: a momentum encoder, a queue. By default nothing to do."""
