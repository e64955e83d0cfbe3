"""The encoder that a run starts from: random, with weights from a file, or by name with its own."""

import logging
from pathlib import Path

from imagekin.errors import InvalidArgumentError
from imagekin.training.data.images import ImageSet
from imagekin.training.data.run_data import measure_normalisation
from imagekin.training.loop.checkpoint import Checkpoint, load_weights, rebuild_encoder
from imagekin.training.models.encoders import (
    IMAGENET_NORMALISATION,
    Backbone,
    Normalisation,
    build_encoder,
    stem_of,
)
from imagekin.training.models.named import RANDOM, load_named, takes_size
from imagekin.training.models.names import parse_name
from imagekin.training.models.stages import freeze, recompute
from imagekin.training.models.weights import load_part, part_for, read_state
from imagekin.training.settings import TrainSettings

logger = logging.getLogger("imagekin.training")


def start_encoder(settings: TrainSettings, train: ImageSet, saved: Checkpoint | None) -> tuple[Backbone, Normalisation]:
    """Build the encoder with the checkpoint's weights or its first ones, and freeze what the settings say.

    Raises:
        InvalidArgumentError: there is no such encoder, or the weights are another one's.
        FailedPreconditionError: the source of an encoder by name cannot be reached.
        NotFoundError: there is no such file of weights.
        DataLossError: the file is damaged.
    """
    if saved is not None:
        encoder, normalisation = rebuild_encoder(settings, saved.encoder), saved.normalisation
    else:
        encoder, normalisation = _first(settings, train)
    if settings.freeze or settings.freeze_batchnorm:
        freeze(encoder, settings.freeze, norms=settings.freeze_batchnorm)
    if settings.recompute:
        recompute(encoder)
    return encoder, normalisation


def _first(settings: TrainSettings, train: ImageSet) -> tuple[Backbone, Normalisation]:
    weights = None if settings.weights is None or str(settings.weights) == RANDOM else settings.weights
    own = load_weights(weights) if weights is not None and weights.suffix != ".safetensors" else None
    if own is not None:
        return rebuild_encoder(settings, own[0]), own[1]
    name = parse_name(settings.encoder)
    if name is None:
        if weights is None:
            return build_encoder(settings.encoder, settings.image_size), measure_normalisation(train)
        return _from_file(settings, weights), IMAGENET_NORMALISATION
    named = load_named(name, weights=settings.weights, image_size=settings.image_size)
    if not takes_size(named.backbone, settings.view_side):
        raise InvalidArgumentError(
            f"{settings.encoder} does not run on views of {settings.view_side} pixels; drop --view-size",
            field="view_size",
        )
    if named.weights is not None:
        logger.warning("%s", named.weights)
    return named.backbone, named.images.normalisation


def _from_file(settings: TrainSettings, path: Path) -> Backbone:
    """Build one of this project's own encoders with the weights of a file; a ResNet keeps the stem that they have."""
    state = read_state(path)
    encoder = build_encoder(settings.encoder, settings.image_size)
    stem = stem_of(part_for(state, encoder.state_dict()))
    encoder = build_encoder(settings.encoder, settings.image_size, stem=stem)
    logger.warning("%s", load_part(encoder, state, path.name))
    return encoder
