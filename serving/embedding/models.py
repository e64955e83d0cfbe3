"""Loaded models, each with its pipeline; models can be replaced while they are in use."""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from imagekin.encoder.metadata import Metadata
from imagekin.encoder.runtime import tuning
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError, NotFoundError, ResourceExhaustedError
from imagekin.machine import cores
from imagekin.serving.embedding.pipeline import Pipeline
from imagekin.serving.observability.metrics import Metrics
from imagekin.serving.settings import Settings

# What an image costs in threads and queues, however small the model is.
_LEAST_IMAGE_SECONDS = 0.0005
_MOST_TRIALS = 5
_TRIAL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded model.

    Attributes:
        name: the name by which requests choose it.
        metadata: metadata of the artifact.
        pipeline: embeds with it.
    """

    name: str
    metadata: Metadata
    pipeline: Pipeline

    @property
    def queued(self) -> int:
        """Number of images waiting or being processed."""
        return self.pipeline.queued

    @property
    def queued_bytes(self) -> int:
        """Bytes of these images."""
        return self.pipeline.queued_bytes


class Models:
    """Loaded models; the first one is the default.

    Args:
        models: the models, with different names.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.name: model for model in models}

    @classmethod
    def open(cls, settings: Settings, metrics: Metrics | None = None) -> Self:
        """Load the models that the settings name. Blocks: not for the event loop's thread.

        Raises:
            NotFoundError: there is no such file.
            InvalidArgumentError: a file is no model artifact.
            FailedPreconditionError: the device is not there.
        """
        return cls(_load(settings.models, settings, metrics))

    @property
    def all(self) -> tuple[ServedModel, ...]:
        """All models, the default one first."""
        return tuple(self._models.values())

    def get(self, name: str) -> ServedModel:
        """Return a model by name; an empty name means the default one.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: there is no model at all.
        """
        if not self._models:
            raise FailedPreconditionError("this server has no model: start it with --model, or send vectors")
        if not name:
            return next(iter(self._models.values()))
        if name not in self._models:
            known = ", ".join(self._models)
            raise NotFoundError(f"no model {name[:64]!r}: this server has {known}", field="model")
        return self._models[name]

    def may_refuse(self) -> bool:
        """Return whether a model's queue is so long that `refusal` should be called before a request is read."""
        return any(model.pipeline.admission.may_refuse() for model in self._models.values())

    def refusal(self, timeout: float | None) -> ResourceExhaustedError | None:
        """Return the error for one more image when no model has room for it, None when one has.

        Args:
            timeout: seconds after which the caller stops waiting; None for never.
        """
        refusals = [model.pipeline.refusal(timeout) for model in self._models.values()]
        found = [refusal for refusal in refusals if refusal is not None]
        if len(found) < len(refusals):
            return None
        return min(found, key=lambda refusal: refusal.retry_after or 0.0, default=None)

    def for_space(self, space: str) -> ServedModel | None:
        """Return the first model that embeds into a space, None when there is none."""
        return next((model for model in self._models.values() if model.metadata.space == space), None)

    async def reload(self, names: Collection[str], settings: Settings, metrics: Metrics | None) -> list[str]:
        """Reload models and swap them in together; calls in progress finish on the old ones.

        Args:
            names: the models' names; empty means all.
            settings: the server's settings.
            metrics: the server's metrics.

        Returns:
            The names of the models loaded.

        Raises:
            NotFoundError: there is no such model, or its file has gone; nothing is swapped.
            InvalidArgumentError: a file is no model artifact; nothing is swapped.
        """
        for name in names:
            self.get(name)
        wanted = [(name, path) for name, path in settings.models if not names or name in names]
        fresh = await asyncio.get_running_loop().run_in_executor(None, _load, wanted, settings, metrics)
        old = [self._models[model.name] for model in fresh]
        self._models.update((model.name, model) for model in fresh)
        for model in old:
            await model.pipeline.retire()
        return [model.name for model in fresh]

    def close(self) -> None:
        """Stop all pipelines. Blocks."""
        for model in self._models.values():
            model.pipeline.close()


def _load(models: Sequence[tuple[str, Path]], settings: Settings, metrics: Metrics | None) -> list[ServedModel]:
    """Load models, and start their threads once all are loaded."""
    opened = [(name, *open_encoder(path, settings)) for name, path in models]
    seconds = [_image_seconds(encoder) for _, encoder, _ in opened]
    workers = settings.decode_workers or cores()
    return [
        ServedModel(
            name,
            encoder.metadata,
            Pipeline(
                encoder,
                settings.limits,
                workers=workers,
                sessions=tuned.sessions,
                max_batch=tuned.batch,
                metrics=metrics,
                image_seconds=image_seconds,
            ),
        )
        for (name, encoder, tuned), image_seconds in zip(opened, seconds, strict=True)
    ]


def _image_seconds(encoder: Encoder) -> float:
    """Measure how long a model takes for an image that is decoded."""
    side = encoder.metadata.preprocess
    pixels = np.zeros((1, side.height, side.width, 3), np.uint8)
    # The first inference is slow, and one that fails must do so before the model is served.
    encoder.run(pixels)
    seconds: list[float] = []
    # More than once, because the machine may do other things; not often where each takes long.
    while len(seconds) < _MOST_TRIALS and sum(seconds) < _TRIAL_SECONDS:
        start = time.monotonic()
        encoder.run(pixels)
        seconds.append(time.monotonic() - start)
    return max(min(seconds), _LEAST_IMAGE_SECONDS)


def open_encoder(path: Path, settings: Settings) -> tuple[Encoder, tuning.Tuning]:
    """Open a model with the settings' options, and where these are 0 with those measured on this machine.

    Raises:
        ImagekinError: the model cannot be opened.
    """
    device, known = tuning.of_machine(path, settings.device)
    tuned = tuning.Tuning(
        settings.encoder_sessions or known.sessions,
        settings.encoder_threads or known.threads,
        settings.encoder_batch or known.batch,
    )
    opened = Encoder.open(
        path, device=device, threads=tuned.threads, sessions=tuned.sessions, graphs=settings.cuda_graphs
    )
    return opened, tuned
