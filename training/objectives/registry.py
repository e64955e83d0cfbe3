"""The objectives by name."""

from encoder.errors import InvalidArgumentError
from training.objectives.base import Objective
from training.objectives.classifier import CrossEntropy
from training.objectives.context import Context
from training.objectives.deepcluster import DeepCluster
from training.objectives.distillation import SelfDistillation
from training.objectives.exemplar import Exemplar
from training.objectives.jigsaw import Jigsaw
from training.objectives.mixup_supcon import MixupSupCon
from training.objectives.moco import MoCo, SupMoCo
from training.objectives.n_pairs import NPairs
from training.objectives.rotation import Rotation
from training.objectives.simclr import SimCLR
from training.objectives.sincere import Sincere
from training.objectives.supcon import SupCon
from training.objectives.triplet import Triplet

OBJECTIVES: dict[str, type[Objective]] = {
    "supcon": SupCon,
    "sincere": Sincere,
    "mixup-supcon": MixupSupCon,
    "supmoco": SupMoCo,
    "triplet": Triplet,
    "n-pairs": NPairs,
    "cross-entropy": CrossEntropy,
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
