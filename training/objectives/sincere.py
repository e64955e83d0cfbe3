"""SINCERE: SupCon without the repulsion inside a class (Feeney and Hughes 2023, arXiv:2309.14277)."""

from torch import Tensor

from imagekin.training.objectives.contrastive import PairLoss, sincere_loss
from imagekin.training.objectives.supcon import SupCon
from imagekin.training.settings import TrainSettings


class Sincere(SupCon):
    """SupCon with SINCERE's loss."""

    @classmethod
    def pair_loss(cls, settings: TrainSettings) -> PairLoss:
        """Return SINCERE at the settings' temperature."""

        def loss(vectors: Tensor, groups: Tensor, sources: Tensor) -> Tensor:
            return sincere_loss(vectors, groups, settings.temperature)

        return loss

    def chance_loss(self, batch_size: int) -> float | None:
        """Return None: the number of negatives changes with every batch."""
        return None
