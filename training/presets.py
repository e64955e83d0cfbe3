"""The settings that suit data, objective and encoder; a command's options override them."""

import dataclasses
from pathlib import Path

from imagekin.training.data.published import published_name
from imagekin.training.models.names import find_name, parse_name
from imagekin.training.settings import LABELLED, TrainSettings

# Chosen on groceries with EfficientNet-Lite0, see `bench/first_day.py`.
_VIEW_SHARE = 5 / 7
_SIDE_STEP = 32
_LAYER_DECAY = 0.75
_FROZEN_SHARE = 3 / 8
_COMPARE_CLASSES = ("joint", "supcon", "sincere", "triplet", "n-pairs")
"""Objectives that compare images of a class with each other, so that one view of each image is enough."""


def recommended(data: str, out: Path, objective: str = "supcon") -> TrainSettings:
    """Return the settings that suit `data` and the objective on a CPU; the command's options override them."""
    return _fair_views(_for_data(data, out, objective), objective)


def _for_data(data: str, out: Path, objective: str) -> TrainSettings:
    if data == "digits":
        # One thread: so little work gains little from a second one, and on a busy machine two threads that wait for
        # each other are ten times slower.
        return TrainSettings(data=data, out=out, image_size=16, views="strokes", epochs=20, warmup_epochs=2, threads=1)
    published = published_name(Path(data))
    if published in ("mnist", "fashion-mnist"):
        views = "strokes" if published == "mnist" else "supcon"
        return TrainSettings(data=data, out=out, image_size=28, views=views, epochs=10, warmup_epochs=1)
    if published is not None:
        return for_small_images(data, out, objective)
    # For a few thousand photos: about ten minutes for three thousand on two cores. Larger sets need fewer epochs.
    return TrainSettings(data=data, out=out, image_size=64, views="photos", epochs=100, warmup_epochs=2)


def for_small_images(data: str, out: Path, objective: str) -> TrainSettings:
    """Return the settings for CIFAR-like images and the tiny encoder.

    Chosen for each objective on held-out training images of CIFAR-10, see `bench/objectives.py`.
    """
    base = TrainSettings(
        data=data,
        out=out,
        objective=objective,
        image_size=32,
        # With few images and steps, milder views improved both supcon and cross-entropy by three points.
        views="gentle" if objective in LABELLED else "supcon",
        epochs=30,
        warmup_epochs=1,
        batch_size=128,
        # So short a run has no time to learn a head, which is dropped anyway: comparing features directly is better.
        projection_dim=0 if objective in LABELLED else 128,
        learning_rate=3e-3 if objective in (*LABELLED, "context", "deepcluster", "jigsaw") else 1e-3,
    )
    if objective == "jigsaw":
        return dataclasses.replace(base, permutations=24, normalise_tiles=False)
    if objective == "exemplar":
        return dataclasses.replace(base, surrogate_classes=500)
    if objective in ("moco", "supmoco"):
        # A long queue would hold most of a small set, as outdated keys of an encoder that has changed since. A short
        # one is replaced every few steps, so its encoder can follow fast.
        return dataclasses.replace(base, queue_size=512, teacher_momentum=0.9)
    if objective == "triplet":
        # At first the hardest triplets of a batch make the embedding collapse (Schroff et al. 2015, section 3.2).
        return dataclasses.replace(base, mining="semi-hard", learning_rate=1e-3)
    return base


def fine_tuning(base: TrainSettings, image_size: int = 0) -> TrainSettings:
    """Return the settings that suit an encoder by name, which has learned from other images already.

    It is trained on crops of 5/7 of its own input's side: that takes half the time, and in a random crop things look
    larger than in the whole image, so that they match in size (Touvron et al. 2019, arXiv:1906.06423). Its first
    stages, whose edges and colours suit most photos, stay as they are, which saves another quarter.

    Args:
        base: of the run; its encoder is one by name. With random weights nothing is kept as it is.
        image_size: side of the encoder's input; 0 is its own.

    Raises:
        InvalidArgumentError: there is no such encoder.
        FailedPreconditionError: its source cannot be reached.
    """
    from imagekin.training.models.named import RANDOM, build_named, takes_size
    from imagekin.training.models.stages import stages_of

    backbone, images = build_named(find_name(base.encoder), image_size)
    view = max(_SIDE_STEP, round(images.size * _VIEW_SHARE / _SIDE_STEP) * _SIDE_STEP)
    labelled = base.objective in LABELLED
    if str(base.weights) != RANDOM:
        frozen = int(len(stages_of(backbone)) * _FROZEN_SHARE)
        base = dataclasses.replace(
            base, epochs=20, freeze=frozen, layer_decay=_LAYER_DECAY, freeze_batchnorm=True, warmup_epochs=0.5
        )
    settings = dataclasses.replace(
        base,
        image_size=images.size,
        resize=images.resize,
        interpolation=images.interpolation,
        crop_fraction=images.crop_fraction if images.resize == "crop" else 1.0,
        crop_from=round(images.size / images.crop_fraction),
        view_size=view if takes_size(backbone, view) else 0,
        views="crops" if labelled else "simclr",
        batch_size=64,
        num_views=1 if base.objective in (*_COMPARE_CLASSES, "cross-entropy") else 2,
        sampler="pk" if base.objective in _COMPARE_CLASSES else "shuffle",
        projection_dim=0 if labelled else 128,
        label_smoothing=0.1,
        # The hardest triplets make the embedding collapse, see `bench/RESULTS.md`, "The first day".
        mining="semi-hard",
    )
    return _fair_views(settings, base.objective)


def _fair_views(settings: TrainSettings, objective: str) -> TrainSettings:
    """Replace views that hide what the objective is to learn: rotation learns how images are turned."""
    return dataclasses.replace(settings, views="upright") if objective == "rotation" else settings


def is_named(encoder: str) -> bool:
    """Return whether an encoder is one by name, with weights from elsewhere."""
    return parse_name(encoder) is not None
