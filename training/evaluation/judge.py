"""Everything that `imagekin evaluate` can say of a model, as one flat JSON object."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import InvalidArgumentError
from imagekin.machine import Device
from imagekin.training.data.images import ImageSet
from imagekin.training.evaluation.calibration import calibration
from imagekin.training.evaluation.evaluate import align_labels, check_prepared, embed, embed_both, score
from imagekin.training.evaluation.few_shot import few_shot_accuracy, parse_way_shot
from imagekin.training.evaluation.robustness import Robustness, mean_corruption_error, measure_robustness


@dataclass(frozen=True, slots=True)
class Extras:
    """What is measured beside the usual scores.

    Attributes:
        few_shot: tasks such as `20x1`.
        within: whether all classes of an episode are of one parent folder.
        calibration: whether to measure calibration errors.
        robustness: whether to measure accuracies on corrupted test images.
        corruptions: some of the corruptions; empty is all.
        baseline: the model that the mean corruption error is relative to.
    """

    few_shot: tuple[str, ...] = ()
    within: bool = False
    calibration: bool = False
    robustness: bool = False
    corruptions: tuple[str, ...] = ()
    baseline: Path | None = None


def judge(
    model: Path,
    train: ImageSet | None,
    test: ImageSet,
    extras: Extras,
    *,
    k: int = 20,
    temperature: float = 0.07,
    device: Device = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Return the scores of the model artifact `model`, and what `extras` ask for.

    Args:
        model: the ONNX file.
        train: labelled images; None when only few-shot tasks are asked for, whose classes the model may not know.
        test: labelled images, prepared as the model's metadata say, like `train`.
        extras: what else to measure.
        k: neighbours asked.
        temperature: of their votes.
        device: `auto`, `cpu` or `cuda`.
        seed: of splits, episodes and corruptions.

    Returns:
        The figures of `Scores`, `Calibration`, `few_shot` by task, and of `Robustness`: means, and by corruption.

    Raises:
        InvalidArgumentError: without training images something else than few-shot is asked for, or what is asked for
            does not exist or does not fit the images.
        FailedPreconditionError: the images were not prepared as the model's metadata say, or the baseline's images are
            prepared otherwise.
    """
    tasks = [(text, *parse_way_shot(text)) for text in extras.few_shot]
    if train is None and (not tasks or extras.calibration or extras.robustness):
        raise InvalidArgumentError(
            "name the images to compare with (--train); only --few-shot does without", field="train"
        )
    encoder = Encoder.open(model, device=device)
    figures: dict[str, Any] = {}
    if train is None:
        check_prepared(encoder, test)
        if not test.class_names:
            raise InvalidArgumentError(
                f"{test.name} has no class folders; few-shot needs labelled images", field="test"
            )
        test_x = embed(encoder, test.pixels)
    else:
        check_prepared(encoder, train, test)
        labels = align_labels(train, test)
        train_x, test_x, rate = embed_both(encoder, train, test)
        scores = score(train_x, train.labels, test_x, labels, k=k, temperature=temperature, seed=seed)
        figures |= dataclasses.replace(scores, embeddings_per_second=rate).to_json()
        if extras.calibration:
            errors = calibration(
                train_x, train.labels, test_x, labels, k=k, temperature=temperature, penalty=scores.linear_c, seed=seed
            )
            figures |= dataclasses.asdict(errors)
        if extras.robustness:
            measured = [_corrupted(encoder, train, test, extras.corruptions, k, temperature, seed)]
            if extras.baseline is not None:
                other = Encoder.open(extras.baseline, device=device)
                check_prepared(other, train, test)
                measured.append(_corrupted(other, train, test, extras.corruptions, k, temperature, seed))
            figures |= _robustness_figures(*measured)
            figures |= {} if extras.baseline is None else {"baseline": str(extras.baseline)}
    if tasks:
        groups = _parents(test) if extras.within else None
        figures["few_shot"] = {
            text: dataclasses.asdict(
                few_shot_accuracy(test_x, test.labels, way=way, shot=shot, groups=groups, seed=seed)
            )
            for text, way, shot in tasks
        }
    return figures


def _corrupted(
    encoder: Encoder,
    train: ImageSet,
    test: ImageSet,
    corruptions: tuple[str, ...],
    k: int,
    temperature: float,
    seed: int,
) -> Robustness:
    """Measure one model, its neighbours and its probe those of its own embeddings of the training images."""
    return measure_robustness(
        encoder,
        embed(encoder, train.pixels),
        train.labels,
        test,
        align_labels(train, test),
        corruptions=corruptions,
        k=k,
        temperature=temperature,
        seed=seed,
    )


def _robustness_figures(own: Robustness, baseline: Robustness | None = None) -> dict[str, Any]:
    """Return means, accuracies by corruption at severities 1 to 5, and mCE where there is a baseline."""
    figures: dict[str, Any] = {"knn_corrupted": own.knn_mean, "linear_corrupted": own.linear_mean}
    if baseline is not None:
        figures["knn_mce"] = mean_corruption_error(own.knn, baseline.knn)
        figures["linear_mce"] = mean_corruption_error(own.linear, baseline.linear)
    figures["corruptions"] = {name: {"knn": own.knn[name], "linear": own.linear[name]} for name in own.knn}
    return figures


def _parents(images: ImageSet) -> NDArray[np.int64]:
    """Return the number of each image's group: the folder that its class folder lies in.

    Raises:
        InvalidArgumentError: class folders do not lie in folders.
    """
    parents = [name.rpartition("/")[0] for name in images.class_names]
    if not all(parents):
        raise InvalidArgumentError(
            f"the class folders of {images.name} lie in no other folders; leave out --few-shot-within", field="test"
        )
    numbers = np.unique(parents, return_inverse=True)[1].astype(np.int64)
    return np.asarray(numbers[images.labels], dtype=np.int64)
