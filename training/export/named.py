"""Make a model artifact of an encoder built by name, without training it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagekin.encoder.metadata import Metadata, Preprocess
from imagekin.training.export.export import ExportReport, export, space_of
from imagekin.training.models.named import ImageConfig, NamedEncoder

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class AdoptedByName:
    """Artifact of an encoder that was adopted by name.

    Attributes:
        model: the artifact.
        metadata: the artifact's metadata.
        parity: differences between the file and the torch encoder.
    """

    model: Path
    metadata: Metadata
    parity: ExportReport


def adopt_named(
    encoder: NamedEncoder, images: ImageConfig, show: Callable[[Preprocess], Pixels], out: Path
) -> AdoptedByName:
    """Write an encoder's artifact, checked on images beside the torch encoder.

    Args:
        encoder: with its weights.
        images: the preparation of images for it, usually its own `images`.
        show: prepares sample images by a rule and returns them, uint8 [N, H, W, 3], N >= 2.
        out: the file; one that exists is replaced.

    Raises:
        FailedPreconditionError: the encoder cannot be converted, or the file's answers differ too much.
    """
    preprocess = images.preprocess()
    metadata = Metadata(
        space_of(encoder.backbone, images.normalisation),
        encoder.backbone.feature_dim,
        preprocess,
        objective="adopted",
        training={"adopted_from": encoder.name.shown[:200]},
    )
    parity = export(encoder.backbone, images.normalisation, metadata, show(preprocess), None, out)
    return AdoptedByName(out, metadata, parity)
