"""Images and labels of a published data set, as arrays of one size."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "test", "all"]


@dataclass(frozen=True, slots=True)
class Arrays:
    """A part of a published data set.

    Attributes:
        pixels: uint8 [N, H, W, 3], or [N, H, W] in gray.
        labels: int64 [N], positions in `class_names`.
        class_names: as published.
        keys: a name for each image.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    keys: tuple[str, ...]
