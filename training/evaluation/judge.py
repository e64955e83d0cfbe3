"""Compute all scores of `imagekin evaluate` as one flat JSON object."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import InvalidArgumentError
from imagekin.training.data.identity import trained_digests
from imagekin.training.data.images import ImageSet
from imagekin.training.data.overlap import without_overlap
from imagekin.training.evaluation.calibration import calibration
from imagekin.training.evaluation.evaluate import align_labels, check_prepared, embed, embed_both, outputs, score
from imagekin.training.evaluation.few_shot import few_shot_accuracy, parse_way_shot
from imagekin.training.evaluation.robustness import Robustness, mean_corruption_error, measure_robustness
from imagekin.training.evaluation.settings import JudgeSettings
from imagekin.training.evaluation.unknown import head_scores, unknown_scores


def judge(
    model: Path,
    train: ImageSet | None,
    test: ImageSet,
    settings: JudgeSettings,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the scores of the model artifact `model`, and the further figures that `settings` ask for.

    Args:
        model: the ONNX file.
        train: labelled images; None when only few-shot tasks are asked for, whose classes the model may not know, or
            only the scores of the model's own head.
        test: labelled images, prepared as the model's metadata say, like `train`.
        settings: how to measure, and what else.
        seed: of splits, episodes and corruptions.

    Returns:
        The figures of `Overlap`, `Scores`, `Calibration`, `UnknownScores`, `HeadScores`, `few_shot` by task, and of
        `Robustness`: means, and by corruption.

    Raises:
        InvalidArgumentError: without training images something else than few-shot or a head's scores is asked for, what
            is asked for does not exist or does not fit the images, or all test images are training images.
        FailedPreconditionError: the images were not prepared as the model's metadata say, or the baseline's images are
            prepared otherwise.
    """
    tasks = [(text, *parse_way_shot(text)) for text in settings.few_shot]
    encoder = Encoder.open(model, device=settings.device)
    names = encoder.metadata.class_names
    alone = (tasks or names) and not (settings.calibration or settings.robustness or settings.unknown)
    if train is None and not alone:
        raise InvalidArgumentError(
            "name the images to compare with (--train); only --few-shot and a model with a head do without",
            field="train",
        )
    figures: dict[str, Any] = {}
    if train is None:
        check_prepared(encoder, test)
        if not test.class_names:
            raise InvalidArgumentError(
                f"{test.name} has no class folders; an evaluation needs labelled images", field="test"
            )
        if not tasks and not (_head_labels(encoder, test) >= 0).any():
            shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
            raise InvalidArgumentError(
                f"{test.name} has no images of the classes that the model's head knows ({shown}); name images to "
                "compare with (--train)",
                field="test",
            )
        # There are none to compare with, but the model's run may have kept which ones it was trained on.
        nothing, known = test.take(np.arange(0)), trained_digests(model)
        test, overlap = without_overlap(nothing, test, allowed=settings.allow_overlap, trained_on=known)
        figures |= overlap.to_json()
        test_x, logits = outputs(encoder, test.pixels)
    else:
        check_prepared(encoder, train, test)
        known_rows(train, test, settings)  # before the work, not after it
        test, overlap = without_overlap(
            train,
            test,
            near=settings.near,
            allowed=settings.allow_overlap,
            trained_on=trained_digests(model),
        )
        figures |= overlap.to_json()
        train_x, test_x, logits, rate = embed_both(encoder, train, test)
        figures |= _scores(encoder, train, test, train_x, test_x, settings, seed)
        figures["embeddings_per_second"] = rate
    if logits is not None:
        figures |= _head_figures(encoder, test, logits)
    if tasks:
        groups = _parents(test) if settings.few_shot_within else None
        figures["few_shot"] = {
            text: dataclasses.asdict(
                few_shot_accuracy(test_x, test.labels, way=way, shot=shot, groups=groups, seed=seed)
            )
            for text, way, shot in tasks
        }
    return figures


def known_rows(train: ImageSet, test: ImageSet, settings: JudgeSettings) -> NDArray[np.int64]:
    """Return the rows of the test images whose class the training images have, ascending.

    Raises:
        InvalidArgumentError: a set has no labels; there are test images of other classes, and `settings.unknown` does
            not ask about them; or there are only such, or none although it does ask.
    """
    if not settings.unknown:
        align_labels(train, test)
        return np.arange(len(test))
    present = {train.class_names[label] for label in np.unique(train.labels) if label >= 0}
    known = np.array([label >= 0 and test.class_names[label] in present for label in test.labels], dtype=np.bool_)
    if known.all() or not known.any():
        raise InvalidArgumentError(
            f"--unknown needs test images of classes that {train.name} has, and of others; {test.name} has "
            f"{'none of others' if known.all() else 'only others'}",
            field="unknown",
        )
    return np.flatnonzero(known)


def _scores(
    encoder: Encoder,
    train: ImageSet,
    every: ImageSet,
    train_x: NDArray[np.float32],
    every_x: NDArray[np.float32],
    settings: JudgeSettings,
    seed: int,
) -> dict[str, Any]:
    """Return the figures that compare test images with training images; `every` may hold unknown classes as well."""
    known = known_rows(train, every, settings)
    test, test_x = (every, every_x) if len(known) == len(every) else (every.take(known), every_x[known])
    labels = align_labels(train, test)
    scores = score(
        train_x,
        train.labels,
        test_x,
        labels,
        k=settings.k,
        temperature=settings.temperature,
        seed=seed,
        names=train.class_names,
    )
    figures = scores.to_json()
    if settings.unknown:
        unknown_x = np.delete(every_x, known, axis=0)
        told = unknown_scores(train_x, train.labels, test_x, unknown_x, penalty=scores.linear_c, seed=seed)
        figures |= dataclasses.asdict(told)
    if settings.calibration:
        errors = calibration(
            train_x,
            train.labels,
            test_x,
            labels,
            k=settings.k,
            temperature=settings.temperature,
            penalty=scores.linear_c,
            seed=seed,
        )
        figures |= dataclasses.asdict(errors)
    if settings.robustness:
        measured = [_corrupted(encoder, train, test, settings, seed)]
        if settings.baseline is not None:
            other = Encoder.open(settings.baseline, device=settings.device)
            check_prepared(other, train, test)
            measured.append(_corrupted(other, train, test, settings, seed))
        figures |= _robustness_figures(*measured)
        figures |= {} if settings.baseline is None else {"baseline": str(settings.baseline)}
    return figures


def _head_figures(encoder: Encoder, test: ImageSet, logits: NDArray[np.float32]) -> dict[str, Any]:
    """Return the figures of the model's own head; none when it knows no class of the test images."""
    labels = _head_labels(encoder, test)
    if not (labels >= 0).any():
        return {}
    return dataclasses.asdict(head_scores(logits, labels, encoder.metadata.scores.get("head_min_confidence")))


def _head_labels(encoder: Encoder, test: ImageSet) -> NDArray[np.int64]:
    """Return the classes of the test images as the model's head numbers them, int64 [N]; -1 for others."""
    places = {name: place for place, name in enumerate(encoder.metadata.class_names)}
    numbers = [places.get(test.class_names[label], -1) if label >= 0 else -1 for label in test.labels]
    return np.array(numbers, dtype=np.int64)


def _corrupted(encoder: Encoder, train: ImageSet, test: ImageSet, settings: JudgeSettings, seed: int) -> Robustness:
    """Measure one model on corrupted images, with its own embeddings of the training images as neighbours."""
    return measure_robustness(
        encoder,
        embed(encoder, train.pixels),
        train.labels,
        test,
        align_labels(train, test),
        corruptions=settings.corruption_names,
        k=settings.k,
        temperature=settings.temperature,
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
    """Return the number of each image's group, the parent of its class folder.

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
