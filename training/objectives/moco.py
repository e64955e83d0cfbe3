"""MoCo: contrast views with a queue of keys from a momentum encoder (He et al. 2020, arXiv:1911.05722).

The queue stores each key's group. In `moco` that is its image, so an older key of the same image is no negative; in
`supmoco` it is its class, so that each query is compared with thousands of labelled keys whatever the batch size.

Queries and keys are both normalised by the statistics of their batch: running statistics lag behind weights that change
fast, and would shift the keys away from the queries. The paper shuffles keys over processes because the positive is the
only key of the query's own batch and its statistics would give it away; here all keys of the batch are candidates.
"""

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from imagekin.training.loop.distributed import gather_rows
from imagekin.training.models.encoders import Backbone
from imagekin.training.models.running_mean import Follower
from imagekin.training.objectives.base import Inputs, Objective, Setup, Targets, TrainingBatch
from imagekin.training.objectives.contrastive import ProjectionHead, attraction, stack_views, unit_vectors
from imagekin.training.views.views import Views


class MoCo(Objective):
    """L_out of each query over the batch's keys and the queue.

    With several processes, the keys of all go to every queue.

    Args:
        views: draws one view of each image.
        encoder: initial state of the momentum encoder.
        projection_dim: size of the vectors compared; 0 compares the features.
        temperature: τ.
        queue_size: number of keys in the queue.
        teacher_momentum: share of its own weights that the momentum encoder keeps each step.
    """

    needs_labels: ClassVar[bool] = False

    queue: Tensor
    queue_groups: Tensor
    queue_place: Tensor

    def __init__(
        self,
        views: Views,
        encoder: Backbone,
        projection_dim: int,
        temperature: float,
        *,
        queue_size: int,
        teacher_momentum: float,
    ) -> None:
        super().__init__()
        self.head = ProjectionHead(encoder.feature_dim, projection_dim)
        self.teacher = Follower(nn.Sequential(encoder, self.head), teacher_momentum, batch_statistics=True)
        self.register_buffer("queue", torch.zeros(queue_size, projection_dim or encoder.feature_dim))
        self.register_buffer("queue_groups", torch.full((queue_size,), -1))
        self.register_buffer("queue_place", torch.zeros((), dtype=torch.int64))
        self._views = views
        self._temperature = temperature
        self._new: tuple[Tensor, Tensor] | None = None

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build it from a run's settings."""
        settings = setup.settings
        return cls(
            setup.views,
            setup.encoder,
            settings.projection_dim,
            settings.temperature,
            queue_size=settings.queue_size,
            teacher_momentum=settings.teacher_momentum,
        )

    def make_inputs(self, batch: TrainingBatch) -> Inputs:
        """Return one view of each image as queries, and keys of another view."""
        images, others = stack_views(batch, self._views, 2).chunk(2)
        keys = unit_vectors(self.teacher(others))
        return Inputs(images, {"keys": gather_rows(keys), "groups": self.groups(batch)})

    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return the loss of the queries."""
        groups = targets["groups"]
        key_groups = gather_rows(groups)
        self._new = (targets["keys"], key_groups)
        candidates = torch.cat((targets["keys"], self.queue))
        candidate_groups = torch.cat((key_groups, self.queue_groups))
        with torch.autocast(features.device.type, enabled=False):
            similarities = unit_vectors(self.head(features)) @ candidates.T / self._temperature
            similarities = similarities.masked_fill(candidate_groups < 0, -torch.inf)
            return attraction(similarities, groups.view(-1, 1) == candidate_groups.view(1, -1))

    def after_step(self, encoder: Backbone) -> None:
        """Update the momentum encoder, and replace the queue's oldest keys by the batch's."""
        self.teacher.follow(nn.Sequential(encoder, self.head))
        if self._new is None:
            return
        keys, groups = (values[: len(self.queue)] for values in self._new)
        places = (self.queue_place + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places], self.queue_groups[places] = keys, groups
        self.queue_place.add_(len(keys)).remainder_(len(self.queue))
        self._new = None

    def chance_loss(self, batch_size: int) -> float | None:
        """Return log of the number of candidates, once the queue is full."""
        return math.log(batch_size + len(self.queue))

    def groups(self, batch: TrainingBatch) -> Tensor:
        """Return the group of each query and key, int64 [B]: the image that it was drawn from."""
        return batch.rows


class SupMoCo(MoCo):
    """MoCo with labels: keys of the query's class attract it (Majumder et al. 2021, arXiv:2101.11058)."""

    needs_labels: ClassVar[bool] = True

    def groups(self, batch: TrainingBatch) -> Tensor:
        """Return the classes of the images, int64 [B]."""
        return batch.labels
