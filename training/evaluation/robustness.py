"""Robustness: the accuracy on corrupted test images (Hendrycks and Dietterich, arXiv:1903.12261).

Only the test images are corrupted; neighbours and probe come from clean training images. The mean corruption error
(mCE) compares a model's errors with a baseline's: for each corruption the sum of its errors over severities divided by
the baseline's, averaged over corruptions. Every figure names its baseline; below 1 is better than the baseline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import InvalidArgumentError
from imagekin.progress import progress
from imagekin.training.data.images import ImageSet
from imagekin.training.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from imagekin.training.evaluation.evaluate import Features, Labels, embed, knn_accuracy
from imagekin.training.evaluation.linear_probe import LinearProbe, choose_penalty


@dataclass(frozen=True, slots=True)
class Robustness:
    """Accuracies on corrupted test images, 0 to 1.

    Attributes:
        knn: for each corruption, the kNN accuracy at severities 1 to 5.
        linear: likewise of the linear probe.
    """

    knn: dict[str, tuple[float, ...]]
    linear: dict[str, tuple[float, ...]]

    @property
    def knn_mean(self) -> float:
        """Mean kNN accuracy over corruptions and severities."""
        return float(np.mean(list(self.knn.values())))

    @property
    def linear_mean(self) -> float:
        """Mean accuracy of the linear probe over corruptions and severities."""
        return float(np.mean(list(self.linear.values())))


def measure_robustness(
    encoder: Encoder,
    train_x: Features,
    train_y: Labels,
    test: ImageSet,
    test_y: Labels,
    *,
    penalty: float | None = None,
    corruptions: Sequence[str] = (),
    k: int = 20,
    temperature: float = 0.07,
    seed: int = 0,
) -> Robustness:
    """Corrupt the test images in every way and at every severity, embed and classify them.

    Args:
        encoder: the model.
        train_x: [N, D] float, its embeddings of clean training images.
        train_y: [N] int, their classes.
        test: M test images.
        test_y: [M] int, their classes, numbered as `train_y`.
        penalty: C of the linear probe; None chooses it as `linear_probe` does.
        corruptions: names of some of `CORRUPTIONS`; empty is all.
        k: neighbours that vote.
        temperature: of their votes.
        seed: of the corruptions.

    Raises:
        InvalidArgumentError: there is no such corruption, or the images are smaller than 8 pixels.
    """
    names = tuple(corruptions) or tuple(CORRUPTIONS)
    unknown = [name for name in names if name not in CORRUPTIONS]
    if unknown:
        known = ", ".join(CORRUPTIONS)
        raise InvalidArgumentError(f"there is no corruption {unknown[0]!r}; choose from: {known}", field="corruptions")
    probe = LinearProbe.fit(train_x, train_y, penalty or choose_penalty(train_x, train_y, seed=seed))
    knn: dict[str, tuple[float, ...]] = {}
    linear: dict[str, tuple[float, ...]] = {}
    with progress("corrupted images", len(names) * len(SEVERITIES) * len(test)) as advance:
        for name in names:
            pairs = []
            for severity in SEVERITIES:
                x = embed(encoder, corrupt(test.pixels, name, severity, seed=seed), advance)
                near = knn_accuracy(train_x, train_y, x, test_y, k=k, temperature=temperature)
                pairs.append((near, probe.accuracy(x, test_y)))
            knn[name], linear[name] = zip(*pairs, strict=True)
    return Robustness(knn, linear)


def mean_corruption_error(own: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]]) -> float:
    """Return the mCE of accuracies by corruption, relative to a baseline on the same images; the baseline's own is 1.

    Raises:
        InvalidArgumentError: the baseline makes no error at all under some corruption.
    """
    ratios = []
    for name, accuracies in own.items():
        errors = sum(1 - accuracy for accuracy in baseline[name])
        if errors <= 0:
            raise InvalidArgumentError(f"the baseline makes no error under {name}; there is nothing to compare with")
        ratios.append(sum(1 - accuracy for accuracy in accuracies) / errors)
    return float(np.mean(ratios))
