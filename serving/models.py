"""The models that a server has loaded, each with its pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

from encoder.errors import FailedPreconditionError, NotFoundError
from encoder.metadata import Metadata
from encoder.session import Device, Encoder
from serving.pipeline import Pipeline
from serving.settings import Settings, cores


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model.

    Attributes:
        name: the name by which requests choose it.
        metadata: what the artifact says about itself.
        pipeline: embeds with it.
    """

    name: str
    metadata: Metadata
    pipeline: Pipeline


class Models:
    """The loaded models; the first one is the default.

    Args:
        models: the models, with different names.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self._models = {model.name: model for model in models}

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Load the models that the settings name. Blocks.

        Raises:
            NotFoundError: there is no such file.
            InvalidArgumentError: a file is no model artifact.
            FailedPreconditionError: the device is not there.
        """
        encoders = [
            (name, Encoder.open(path, device=cast(Device, settings.device), threads=settings.encoder_threads or None))
            for name, path in settings.models
        ]
        return cls([Model(name, encoder.metadata, _pipeline(encoder, settings)) for name, encoder in encoders])

    @property
    def all(self) -> tuple[Model, ...]:
        """All models, the default one first."""
        return tuple(self._models.values())

    def get(self, name: str) -> Model:
        """Return the model of a name; empty means the default one.

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

    def for_space(self, space: str) -> Model | None:
        """Return the first model that embeds into a space, None when there is none."""
        return next((model for model in self._models.values() if model.metadata.space == space), None)

    def close(self) -> None:
        """Stop all pipelines. Blocks."""
        for model in self._models.values():
            model.pipeline.close()


def _pipeline(encoder: Encoder, settings: Settings) -> Pipeline:
    workers = settings.decode_workers or cores()
    return Pipeline(encoder, settings.limits, decode_workers=workers, max_batch=settings.max_encode_batch)
