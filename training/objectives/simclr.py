"""SimCLR: the views of one image attract each other; no labels are used (Chen et al. 2020, arXiv:2002.05709)."""

from typing import ClassVar

from torch import Tensor

from imagekin.training.objectives.base import TrainingBatch
from imagekin.training.objectives.supcon import SupCon


class SimCLR(SupCon):
    """NT-Xent: SupCon in which every image is a class of its own."""

    needs_labels: ClassVar[bool] = False

    def groups(self, batch: TrainingBatch) -> Tensor:
        """Return the group of each view, int64 [B]: the image that it was drawn from."""
        return batch.rows
