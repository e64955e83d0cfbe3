"""Compare training runs: differing settings, scores and costs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imagekin.encoder.metadata import JSON
from imagekin.errors import InvalidArgumentError
from imagekin.training.report.details import read_curves, read_scores
from imagekin.training.settings import TrainSettings

_COMPARED = ("knn_accuracy", "linear_accuracy", "recall_at_1", "map_at_r")
_NOT_COMPARED = frozenset({"out"})


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Training runs side by side; every tuple below has one entry per run, in their order.

    Attributes:
        runs: their folders.
        settings: settings in which at least two runs differ, by name.
        scores: by name, fractions from 0 to 1; None where a run has none.
        losses: of the last epoch; None for an untrained run.
        train_seconds: spent in training steps.
    """

    runs: tuple[str, ...]
    settings: dict[str, tuple[JSON, ...]]
    scores: dict[str, tuple[float | None, ...]]
    losses: tuple[float | None, ...]
    train_seconds: tuple[float, ...]

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


def compare(runs: Sequence[Path]) -> RunComparison:
    """Read runs and compare them.

    Raises:
        InvalidArgumentError: fewer than two runs are named, or a folder is no training run.
        NotFoundError: a run is not finished.
    """
    if len(runs) < 2:
        raise InvalidArgumentError("name at least two runs to compare", field="runs")
    settings = [TrainSettings.load(run).to_dict() for run in runs]
    scores = [read_scores(run) for run in runs]
    curves = [read_curves(run) for run in runs]
    names = (field.name for field in dataclasses.fields(TrainSettings) if field.name not in _NOT_COMPARED)
    columns = {name: tuple(each[name] for each in settings) for name in names}
    return RunComparison(
        runs=tuple(str(run) for run in runs),
        settings={name: values for name, values in columns.items() if any(value != values[0] for value in values)},
        scores={name: tuple(each.get(name) for each in scores) for name in _COMPARED},
        losses=tuple(lines[-1]["loss"] if lines else None for lines in curves),
        train_seconds=tuple(round(sum(line["seconds"] for line in lines), 3) for lines in curves),
    )
