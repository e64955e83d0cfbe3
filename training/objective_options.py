"""Refuse options that would do nothing for the objective chosen."""

from collections.abc import Iterable, Mapping

from imagekin.errors import InvalidArgumentError
from imagekin.training.settings import LABELLED

_SUPCON = ("supcon", "joint", "simclr")
_PAIRS = (*_SUPCON, "sincere", "mixup-supcon", "triplet", "n-pairs")
_QUEUES = ("moco", "supmoco")
_CLASSIFIERS = ("cross-entropy", "self-distillation")
_WITH_VIEWS = (*LABELLED, "simclr", "moco", "rotation", "exemplar", "deepcluster")

HEEDED: Mapping[str, tuple[str, ...]] = {
    "views": _WITH_VIEWS,
    "num_views": (*_PAIRS, "exemplar"),
    "temperature": (*_SUPCON, "sincere", "mixup-supcon", *_QUEUES),
    "projection_dim": (*_PAIRS, *_QUEUES),
    "loss_form": _SUPCON,
    "max_positives": _SUPCON,
    "contrastive_weight": ("joint",),
    "gather": _PAIRS,
    "label_smoothing": (*_CLASSIFIERS, "joint"),
    "mixup": (*_CLASSIFIERS, "mixup-supcon"),
    "margin": ("triplet",),
    "mining": ("triplet",),
    "queue_size": _QUEUES,
    "teacher_momentum": (*_QUEUES, "self-distillation"),
    "distillation": ("self-distillation",),
    "permutations": ("jigsaw",),
    "normalise_tiles": ("jigsaw",),
    "surrogate_classes": ("exemplar",),
    "clusters": ("deepcluster",),
    "rotations_as_classes": LABELLED,
    "mirrors_as_classes": LABELLED,
}
"""Objectives that heed an option; an option that is not named here is heeded by all."""


def refuse_ignored(objective: str, given: Iterable[str]) -> None:
    """Refuse options, by their names in `TrainSettings`, that do nothing for an objective.

    Raises:
        InvalidArgumentError: one of them does nothing; the message says for which objectives it is.
    """
    for name in given:
        heeded = HEEDED.get(name)
        if heeded is not None and objective not in heeded:
            raise InvalidArgumentError(
                f"--{name.replace('_', '-')} does nothing for --objective {objective}; it is for {', '.join(heeded)}",
                field=name,
            )
