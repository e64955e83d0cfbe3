"""Find the preset under which a foreign encoder tells labelled images apart best, where nobody said which it wants.

The wrong normalisation rarely makes an encoder fail; it makes it worse. So each preset is tried on a few images of
known classes: the share whose nearest other image is of their class.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagekin.encoder.adoption.adopt import PRESETS, Adoption, AdoptSettings, PresetName
from imagekin.encoder.metadata import Preprocess

TRIED: tuple[PresetName, ...] = ("imagenet", "clip", "half", "unit", "bytes")
"""Those that differ by more than interpolation, the most frequent first."""
OWN: tuple[PresetName, ...] = ("unit", "bytes")
"""Those for a graph that normalises its input itself."""


@dataclass(frozen=True, slots=True)
class PresetScore:
    """Accuracy of a preset, 0 to 1.

    Attributes:
        preset: its name.
        settings: those of the adoption with it.
        accuracy: share of the images whose nearest other one is of their class.
    """

    preset: PresetName
    settings: AdoptSettings
    accuracy: float


def score_presets(
    file: Path,
    settings: AdoptSettings,
    presets: Sequence[PresetName],
    show: Callable[[Preprocess], NDArray[np.uint8]],
    labels: NDArray[np.int64],
    *,
    keep: frozenset[str] = frozenset(),
) -> list[PresetScore]:
    """Score presets on labelled images, the best first; equal ones stay in the order given.

    Args:
        file: the foreign model.
        settings: of its adoption, whose fields that a preset sets are replaced.
        presets: those to try.
        show: prepares the images by a rule and returns them, uint8 [N, H, W, 3].
        labels: their classes, int64 [N].
        keep: fields of the settings that were asked for, and are not replaced.

    Raises:
        InvalidArgumentError: the model does not run, or its output is no embedding.
    """
    shown: dict[Preprocess, NDArray[np.uint8]] = {}
    found = []
    for preset in presets:
        said = {name: value for name, value in asdict(PRESETS[preset]).items() if name not in keep}
        tried = replace(settings, **said)
        adoption = Adoption(file, tried)
        if adoption.preprocess not in shown:
            shown[adoption.preprocess] = show(adoption.preprocess)
        x = adoption.embed(shown[adoption.preprocess])
        found.append(PresetScore(preset, tried, _accuracy(x, labels)))
    return sorted(found, key=lambda each: -each.accuracy)


def _accuracy(x: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    similarities = x @ x.T
    np.fill_diagonal(similarities, -np.inf)
    return float(np.mean(labels[similarities.argmax(1)] == labels))
