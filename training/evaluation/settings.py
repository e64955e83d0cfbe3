"""Settings of `imagekin evaluate`. Nothing here imports torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from imagekin.errors import InvalidArgumentError
from imagekin.machine import Device
from imagekin.settings import check, option

_NEAR = (
    "Also look for near-duplicates of training images among the test images: copies that were compressed, resized or "
    "recoloured, not cropped or mirrored."
)
_ALLOW_OVERLAP = "Let the scores count test images that are training images, too."
Near = Annotated[bool, typer.Option("--near", help=_NEAR)]
AllowOverlap = Annotated[bool, typer.Option("--allow-overlap", help=_ALLOW_OVERLAP)]


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Settings of the usual scores, and the choice of further ones.

    Raises:
        InvalidArgumentError: a number is out of its bounds, or corruptions are named that are not asked for.
    """

    k: int = option(20, "Neighbours that vote.", least=1)
    temperature: float = option(0.07, "Of the votes: the lower, the more the nearest count.", above=0)
    device: Device = option("auto", "Where ONNX Runtime runs.")
    near: bool = option(False, _NEAR)
    allow_overlap: bool = option(False, _ALLOW_OVERLAP)
    few_shot: tuple[str, ...] = option(
        (), "Also N-way K-shot among the test images' classes, such as 20x1; may be repeated.", metavar="WAYSxSHOTS"
    )
    few_shot_within: bool = option(False, "All classes of an episode lie in the same folder, such as alphabet/.")
    calibration: bool = option(False, "Also the expected calibration errors of votes and probe.")
    unknown: bool = option(
        False, "Test images of classes that the training images lack are unknown: also how well they are told apart."
    )
    robustness: bool = option(False, "Also the accuracies on corrupted test images: 15 ways, 5 severities.")
    corruptions: str = option("", "Only some of the 15 corruptions, separated by commas.")
    baseline: Path | None = option(
        None, "With --robustness: the model that the corruption error is relative to.", metavar="MODEL"
    )

    def __post_init__(self) -> None:
        check(self)
        if (self.corruptions or self.baseline) and not self.robustness:
            raise InvalidArgumentError(
                "--corruptions and --baseline belong to --robustness; add it", field="robustness"
            )

    @property
    def corruption_names(self) -> tuple[str, ...]:
        """Corruptions asked for, by name; empty is all of them."""
        return tuple(name.strip() for name in self.corruptions.split(",") if name.strip())
