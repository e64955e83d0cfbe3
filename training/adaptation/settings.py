"""Settings of `imagekin adapt`. Nothing here imports torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagekin.machine import Device
from imagekin.settings import check, option

AdaptObjective = Literal["supcon", "joint", "cross-entropy", "triplet"]
HeadName = Literal["linear", "mlp"]


@dataclass(frozen=True, slots=True)
class AdaptSettings:
    """Settings of an adaptation.

    Raises:
        InvalidArgumentError: a number is out of its bounds.
    """

    objective: AdaptObjective = option(
        "supcon", "What the head learns to minimise; joint is cross-entropy and half of supcon."
    )
    head: HeadName = option("linear", "The residual that is added to the embedding: a linear map or two with a ReLU.")
    views: int = option(2, "Random crops of each image that are embedded beside it, and learned from.", least=0)
    epochs: int = option(60, "Passes over the embeddings.", least=1)
    batch_size: int = option(512, "Images of a step.", least=2)
    learning_rate: float = option(1e-3, "Peak of the learning rate, which falls along half a cosine.", above=0)
    weight_decay: float = option(1e-2, "Decay of the head's weights.", least=0.0)
    temperature: float = option(0.1, "Temperature of supcon.", above=0)
    anyway: bool = option(False, "Write the model even if it is no better on held-out images.")
    cache_dir: Path | None = option(None, "Folder of embeddings; ~/.cache/imagekin/embeddings by default.")
    device: Device = option("auto", "Where ONNX Runtime runs.")
    seed: int = option(0, "Seed of everything random.", least=0)

    def __post_init__(self) -> None:
        check(self)
