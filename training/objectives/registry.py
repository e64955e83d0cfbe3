"""Objectives by name."""

from imagekin.errors import InvalidArgumentError
from imagekin.training.objectives.base import Objective
from imagekin.training.objectives.classifier import CrossEntropy
from imagekin.training.objectives.distillation import SelfDistillation
from imagekin.training.objectives.joint import Joint
from imagekin.training.objectives.mixup_supcon import MixupSupCon
from imagekin.training.objectives.moco import MoCo, SupMoCo
from imagekin.training.objectives.n_pairs import NPairs
from imagekin.training.objectives.pretext.context import Context
from imagekin.training.objectives.pretext.deepcluster import DeepCluster
from imagekin.training.objectives.pretext.exemplar import Exemplar
from imagekin.training.objectives.pretext.jigsaw import Jigsaw
from imagekin.training.objectives.pretext.rotation import Rotation
from imagekin.training.objectives.simclr import SimCLR
from imagekin.training.objectives.sincere import Sincere
from imagekin.training.objectives.supcon import SupCon
from imagekin.training.objectives.triplet import Triplet

OBJECTIVES: dict[str, type[Objective]] = {
    "supcon": SupCon,
    "sincere": Sincere,
    "mixup-supcon": MixupSupCon,
    "supmoco": SupMoCo,
    "triplet": Triplet,
    "n-pairs": NPairs,
    "cross-entropy": CrossEntropy,
    "joint": Joint,
    "self-distillation": SelfDistillation,
    "simclr": SimCLR,
    "moco": MoCo,
    "rotation": Rotation,
    "jigsaw": Jigsaw,
    "context": Context,
    "exemplar": Exemplar,
    "deepcluster": DeepCluster,
}


def find_objective(name: str) -> type[Objective]:
    """Return the objective of that name; raises InvalidArgumentError when there is none."""
    if name not in OBJECTIVES:
        names = ", ".join(OBJECTIVES)
        raise InvalidArgumentError(f"there is no objective {name!r}; choose one of: {names}", field="objective")
    return OBJECTIVES[name]
