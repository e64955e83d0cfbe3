"""The objectives by name."""

from encoder.errors import InvalidArgumentError
from training.objectives.base import Objective
from training.objectives.simclr import SimCLR
from training.objectives.sincere import Sincere
from training.objectives.supcon import SupCon

OBJECTIVES: dict[str, type[Objective]] = {"supcon": SupCon, "simclr": SimCLR, "sincere": Sincere}


def find_objective(name: str) -> type[Objective]:
    """Return the objective of that name; raises InvalidArgumentError when there is none."""
    if name not in OBJECTIVES:
        names = ", ".join(OBJECTIVES)
        raise InvalidArgumentError(f"there is no objective {name!r}; choose one of: {names}", field="objective")
    return OBJECTIVES[name]
