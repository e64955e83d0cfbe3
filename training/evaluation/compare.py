"""Compare training runs and artifacts: differing settings, scores and costs."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagekin.encoder.artifact import read_metadata
from imagekin.encoder.metadata import JSON, Preprocess
from imagekin.errors import InvalidArgumentError
from imagekin.training.data.arrays import Split
from imagekin.training.data.images import ImageSet, has_split, load_images
from imagekin.training.evaluation.judge import judge
from imagekin.training.evaluation.settings import JudgeSettings
from imagekin.training.report.details import read_curves, read_scores
from imagekin.training.report.page import find_model
from imagekin.training.settings import TrainSettings

_COMPARED = ("knn_accuracy", "linear_accuracy", "recall_at_1", "map_at_r")
# Scores that some artifacts bring along, or get where they have a head.
_BROUGHT = ("held_out_knn_before", "held_out_knn", "head_held_out", "head_accuracy")
_NOT_COMPARED = frozenset({"out"})
_DEFAULTS: dict[str, object] = {field.name: field.default for field in dataclasses.fields(TrainSettings)}


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Training runs and artifacts side by side; every tuple below has one entry for each, in their order.

    Attributes:
        runs: their folders or files.
        settings: settings in which at least two differ, by name; None where one has no such setting. What only runs
            have, and have by default, is left out.
        scores: by name, fractions from 0 to 1; None where one has none.
        losses: of the last epoch; None for an untrained run or an artifact.
        train_seconds: spent in training steps; None for an artifact.
    """

    runs: tuple[str, ...]
    settings: dict[str, tuple[JSON, ...]]
    scores: dict[str, tuple[float | None, ...]]
    losses: tuple[float | None, ...]
    train_seconds: tuple[float | None, ...]

    def to_json(self) -> dict[str, JSON]:
        """Return the comparison as a JSON object with one entry per run under `runs`."""
        entries: list[JSON] = [
            {
                "run": run,
                "settings": {name: values[place] for name, values in self.settings.items()},
                **{name: values[place] for name, values in self.scores.items()},
                "loss": self.losses[place],
                "train_seconds": self.train_seconds[place],
            }
            for place, run in enumerate(self.runs)
        ]
        return {"runs": entries}


@dataclass(frozen=True, slots=True)
class _One:
    """Settings, scores and costs of one of those compared."""

    settings: Mapping[str, JSON]
    scores: Mapping[str, Any]
    loss: float | None = None
    seconds: float | None = None


def compare(runs: Sequence[Path], *, data: str = "", test: str = "") -> RunComparison:
    """Read runs and artifacts and compare them.

    Args:
        runs: folders of runs, or files of artifacts.
        data: labelled images by which all are scored anew; empty takes the scores that each has.
        test: the images that are asked about then; empty takes the test split of `data`.

    Raises:
        InvalidArgumentError: fewer than two are named, one is neither, or the images cannot be compared with.
        NotFoundError: a run is not finished, or there is no such artifact.
    """
    if len(runs) < 2:
        raise InvalidArgumentError("name at least two runs or artifacts to compare", field="runs")
    ones = [_artifact(run) if _is_artifact(run) else _run(run) for run in runs]
    if data:
        ones = [
            dataclasses.replace(one, scores=scores) for one, scores in zip(ones, _judged(runs, data, test), strict=True)
        ]
    names = dict.fromkeys(name for one in ones for name in one.settings if name not in _NOT_COMPARED)
    differing = [name for name in names if _tells_apart(name, ones)]
    brought = [name for name in _BROUGHT if any(name in one.scores for one in ones)]
    return RunComparison(
        runs=tuple(str(run) for run in runs),
        settings={name: tuple(one.settings.get(name) for one in ones) for name in differing},
        scores={name: tuple(one.scores.get(name) for one in ones) for name in (*_COMPARED, *brought)},
        losses=tuple(one.loss for one in ones),
        train_seconds=tuple(one.seconds for one in ones),
    )


def _tells_apart(name: str, ones: Sequence[_One]) -> bool:
    """Return whether a setting differs among those that have it, or some have it and not by default."""
    said = [one.settings[name] for one in ones if name in one.settings]
    return any(value != said[0] for value in said) or (len(said) < len(ones) and said[0] != _DEFAULTS.get(name))


def load_both(data: str, test: str, preprocess: Preprocess) -> tuple[ImageSet, ImageSet]:
    """Load images to compare with and images to ask about; without `test`, the two splits of `data`.

    Raises:
        InvalidArgumentError: neither names images to ask about.
    """
    if not test and not has_split(data):
        raise InvalidArgumentError("name the images to ask about with --test", field="test")
    part: Split = "train" if has_split(data) else "all"
    train = load_images(data, split=part, preprocess=preprocess)
    test = test or data
    part = "test" if has_split(test) else "all"
    return train, load_images(test, split=part, preprocess=preprocess)


def _is_artifact(path: Path) -> bool:
    return path.is_file() or path.suffix == ".onnx"


def _artifact(model: Path) -> _One:
    metadata = read_metadata(model)
    said = {"objective": metadata.objective, "dataset": metadata.dataset, "precision": metadata.precision}
    plain = {name: value for name, value in metadata.training.items() if not isinstance(value, dict | list)}
    return _One({name: value for name, value in {**plain, **said}.items() if value != ""}, metadata.scores)


def _run(folder: Path) -> _One:
    settings, scores, curves = TrainSettings.load(folder).to_dict(), read_scores(folder), read_curves(folder)
    seconds = round(sum(line["seconds"] for line in curves), 3)
    return _One(settings, scores, curves[-1]["loss"] if curves else None, seconds)


def _judged(runs: Sequence[Path], data: str, test: str) -> list[dict[str, Any]]:
    """Score each, loading the images once for each way to prepare them."""
    models = [run if _is_artifact(run) else find_model(run) for run in runs]
    loaded: dict[Preprocess, tuple[ImageSet, ImageSet]] = {}
    found = []
    for model in models:
        preprocess = read_metadata(model).preprocess
        if preprocess not in loaded:
            loaded[preprocess] = load_both(data, test, preprocess)
        found.append(judge(model, *loaded[preprocess], JudgeSettings()))
    return found
