"""Judge an encoder on a set whose test images are of known and of unknown classes.

Neighbours and a linear probe answer, both fitted to the clean training images; nothing is chosen by a test image.
Corrupted images: each of the 15 corruptions, at severity 3, of the same few known test images, evenly chosen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from imagekin.encoder.metadata import Preprocess
from imagekin.training.data.images import load_images
from imagekin.training.evaluation.calibration import calibration
from imagekin.training.evaluation.corruptions import CORRUPTIONS, corrupt
from imagekin.training.evaluation.evaluate import knn_accuracy
from imagekin.training.evaluation.linear_probe import LinearProbe, choose_penalty
from imagekin.training.evaluation.unknown import unknown_scores

SEVERITY = 3
Pixels = NDArray[np.uint8]
Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Figures:
    """Scores of an encoder, 0 to 1.

    Attributes:
        knn: accuracy of the nearest neighbours on test images of known classes.
        linear: of the linear probe.
        knn_corrupted: mean accuracy over the corruptions.
        linear_corrupted: of the linear probe.
        knn_ece: expected calibration error of the votes, with the temperature fitted to a fifth of the training images.
        linear_ece: of the linear probe.
        knn_unknown: AUROC of telling known from unknown test images by the nearest neighbour's similarity.
        linear_unknown: by the probe's confidence.
    """

    knn: float
    linear: float
    knn_corrupted: float
    linear_corrupted: float
    knn_ece: float
    linear_ece: float
    knn_unknown: float
    linear_unknown: float


@dataclass(frozen=True, slots=True)
class Embedded:
    """A set as one encoder sees it.

    Attributes:
        train: embeddings of the training images [N, D].
        test: of the test images [M, D].
        corrupted: of the corrupted images [15, K, D].
    """

    train: Vectors
    test: Vectors
    corrupted: Vectors


class Judge:
    """Images to judge encoders by, decoded and corrupted once.

    Args:
        train: an archive of class folders.
        test: likewise; classes that `train` lacks are the unknown ones.
        preprocess: the rule by which the encoders take images.
        corrupted: K, images that are corrupted.
    """

    def __init__(self, train: str, test: str, preprocess: Preprocess, corrupted: int) -> None:
        self.train, self._test = (load_images(path, preprocess=preprocess) for path in (train, test))
        numbers = {name: number for number, name in enumerate(self.train.class_names)}
        self._test_labels = np.array([numbers.get(self._test.class_names[each], -1) for each in self._test.labels])
        known = np.flatnonzero(self._test_labels >= 0)
        self._some = known[np.linspace(0, len(known) - 1, min(len(known), corrupted)).astype(np.int64)]

    @cached_property
    def _harmed(self) -> Pixels:
        chosen = self._test.pixels[self._some]
        return np.stack([corrupt(chosen, name, SEVERITY) for name in CORRUPTIONS])

    def embed(self, embed: Callable[[Pixels], Vectors]) -> Embedded:
        """Embed all of the images."""
        harmed = self._harmed
        flat = embed(harmed.reshape(-1, *harmed.shape[2:]))
        test = embed(self._test.pixels)
        return Embedded(embed(self.train.pixels), test, flat.reshape(*harmed.shape[:2], -1))

    def figures(self, seen: Embedded, adapted: Callable[[Vectors], Vectors] | None = None) -> Figures:
        """Return the scores of embeddings, or of what a head makes of them."""
        change = adapted or (lambda vectors: vectors)
        x, y, test, labels = change(seen.train), self.train.labels, change(seen.test), self._test_labels
        known = labels >= 0
        penalty = choose_penalty(x, y)
        probe = LinearProbe.fit(x, y, penalty)
        errors = calibration(x, y, test[known], labels[known], penalty=penalty)
        told = unknown_scores(x, y, test[known], test[~known], penalty=penalty)
        harmed = [change(vectors) for vectors in seen.corrupted]
        truth = labels[self._some]
        return Figures(
            knn=knn_accuracy(x, y, test[known], labels[known]),
            linear=probe.accuracy(test[known], labels[known]),
            knn_corrupted=mean(knn_accuracy(x, y, vectors, truth) for vectors in harmed),
            linear_corrupted=mean(probe.accuracy(vectors, truth) for vectors in harmed),
            knn_ece=errors.knn_ece_scaled,
            linear_ece=errors.linear_ece_scaled,
            knn_unknown=told.knn_unknown_auroc,
            linear_unknown=told.linear_unknown_auroc,
        )
