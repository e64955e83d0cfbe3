"""Checkpoints: all state that a run needs to resume exactly, in one file that is replaced atomically.

A checkpoint is a plain mapping of tensors, numbers and strings that `torch.load(..., weights_only=True)` reads, so
opening a checkpoint from elsewhere never runs code from it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from imagekin import files
from imagekin.encoder.metadata import Preprocess
from imagekin.errors import DataLossError, FailedPreconditionError, NotFoundError
from imagekin.training.models.encoders import Backbone, Normalisation, build_encoder, load_state, stem_of
from imagekin.training.models.named import build_named
from imagekin.training.models.names import parse_name
from imagekin.training.models.weights import read_file
from imagekin.training.settings import CHECKPOINT_FILE, TrainSettings

FORMAT = 1

StateDict = dict[str, Any]


@dataclass(slots=True)
class Position:
    """Progress of a run.

    Attributes:
        epoch: the current epoch, from 0; equal to the settings' epochs when the run is finished.
        batch: steps done in this epoch.
        step: steps done in all epochs.
        images: images seen in this epoch (each counted once, however many views it gave).
        loss_sum: sum of this epoch's losses.
        seconds: time spent in this epoch.
        total_seconds: time spent in the epochs before.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    images: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    total_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Contents of a checkpoint file.

    Attributes:
        settings: of the run.
        normalisation: of the encoder's input.
        class_names: of the training data.
        data_name: display name of the training data.
        position: the run's progress.
        encoder: state dict of the encoder.
        objective: state dict of the objective: its head and its buffers.
        optimiser: state dict of the optimiser.
        average: state dict of the running mean of the encoder, which is exported; empty when there is none.
        rng: states of torch's global generators, by device type. The generators of views and of the data's order have
            none: each step and each epoch seeds its own from the run's seed (`imagekin.training.loop.seeds`).
    """

    settings: TrainSettings
    normalisation: Normalisation
    class_names: tuple[str, ...]
    data_name: str
    position: Position
    encoder: StateDict
    objective: StateDict
    optimiser: StateDict
    rng: dict[str, Tensor]
    average: StateDict = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """A run read back from its folder.

    Attributes:
        settings: of the run.
        encoder: with the last checkpoint's weights, on the CPU, in evaluation mode.
        normalisation: of the encoder's input.
        preprocess: how files become the encoder's input.
        class_names: of the training data.
        data_name: display name of the training data.
        position: the run's progress.
    """

    settings: TrainSettings
    encoder: Backbone
    normalisation: Normalisation
    preprocess: Preprocess
    class_names: tuple[str, ...]
    data_name: str
    position: Position


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write `path` atomically: even after a kill or a power cut there is a whole checkpoint under that name."""
    values = {part.name: getattr(checkpoint, part.name) for part in fields(checkpoint)}
    values |= {
        "format": FORMAT,
        "settings": checkpoint.settings.to_dict(),
        "normalisation": asdict(checkpoint.normalisation),
        "class_names": list(checkpoint.class_names),
        "position": asdict(checkpoint.position),
    }
    try:
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            _write(values, file)
    except OSError as error:
        raise FailedPreconditionError(f"the checkpoint cannot be written to {path}: {error.strerror}") from error


class _Noting:
    """A file that remembers why it could not be written, which torch forgets."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write as the file does."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """Flush as the file does."""
        self._file.flush()


def _write(values: StateDict, file: BinaryIO) -> None:
    noting = _Noting(file)
    try:
        torch.save(values, noting)  # type: ignore[arg-type]  # it writes and flushes, and no more
    except RuntimeError as error:
        if noting.failure is None:
            raise
        raise noting.failure from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        NotFoundError: there is no such file.
        DataLossError: it is damaged, or no checkpoint of a run.
    """
    values = _read(path)
    if values.get("format") != FORMAT:
        raise DataLossError(f"{path} is no checkpoint of a training run")
    try:
        return Checkpoint(
            settings=TrainSettings.from_dict(values["settings"]),
            normalisation=_normalisation(values["normalisation"]),
            class_names=tuple(values["class_names"]),
            data_name=values["data_name"],
            position=Position(**values["position"]),
            encoder=values["encoder"],
            objective=values["objective"],
            optimiser=values["optimiser"],
            rng=values["rng"],
            average=values.get("average", {}),
        )
    except (KeyError, TypeError) as error:
        raise DataLossError(f"{path} is damaged: {error}") from error


def load_run(run_dir: Path) -> Run:
    """Rebuild a run's encoder from the last checkpoint in its folder.

    Raises:
        NotFoundError: the folder holds no checkpoint.
        DataLossError: the checkpoint is damaged.
    """
    checkpoint = load(run_dir / CHECKPOINT_FILE)
    settings = checkpoint.settings
    encoder = rebuild_encoder(settings, checkpoint.average or checkpoint.encoder)
    return Run(
        settings=settings,
        encoder=encoder.eval(),
        normalisation=checkpoint.normalisation,
        preprocess=settings.preprocess(),
        class_names=checkpoint.class_names,
        data_name=checkpoint.data_name,
        position=checkpoint.position,
    )


def rebuild_encoder(settings: TrainSettings, state: Mapping[str, Tensor]) -> Backbone:
    """Build the encoder of a run with the weights of a checkpoint.

    Raises:
        InvalidArgumentError: the weights are another encoder's.
        FailedPreconditionError: an encoder by name can no longer be built here.
    """
    name = parse_name(settings.encoder)
    if name is None:
        encoder: Backbone = build_encoder(settings.encoder, settings.image_size, stem=stem_of(state))
    else:
        encoder, _ = build_named(name, settings.image_size)
    load_state(encoder, state)
    return encoder


def load_weights(path: Path) -> tuple[StateDict, Normalisation] | None:
    """Read an encoder's weights from a run's folder or a checkpoint; None when the file is neither.

    Returns:
        The state dict and the normalisation that belongs to it.

    Raises:
        NotFoundError: there is no such file.
        DataLossError: it is damaged.
    """
    values = read_file(path / CHECKPOINT_FILE if path.is_dir() else path)
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("encoder"), dict):
        return None
    return dict(values.get("average") or values["encoder"]), _normalisation(values["normalisation"])


def _normalisation(values: Mapping[str, Any]) -> Normalisation:
    red, green, blue = (float(value) for value in values["mean"])
    std_red, std_green, std_blue = (float(value) for value in values["std"])
    return Normalisation((red, green, blue), (std_red, std_green, std_blue))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotFoundError(f"there is no checkpoint at {path}")
    values = read_file(path)
    if not isinstance(values, dict):
        raise DataLossError(f"{path} holds no weights")
    return values
