"""Measure the effect of each hyper-parameter: vary each alone from one base setting.

    sweep(base, {"temperature": (0.05, 0.1, 0.5), "learning_rate": (1e-4, 1e-3)}, seeds=3)

trains the base and every variation once per seed, each in its own folder, and reuses finished runs. The spread over
seeds is reported beside the spread over values: a hyper-parameter whose values differ by less than the seeds has no
demonstrated effect, which Khosla et al. 2020 (section 4.4) claim for SupCon. Nothing here chooses a value, because the
accuracies are those on the test images.
"""

import dataclasses
import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from imagekin.encoder.metadata import JSON
from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.training.objective_options import refuse_ignored
from imagekin.training.report.details import read_scores
from imagekin.training.settings import CONFIG_FILE, REPORT_FILE, TrainSettings

Value = str | int | float | bool

_FIXED = frozenset({"data", "out", "test", "seed", "weights", "device", "threads", "checkpoint_seconds"})
_BASE = "base"

logger = logging.getLogger("imagekin.training")


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One setting, trained once per seed.

    Attributes:
        name: the hyper-parameter that differs from the base; `base` for the base itself.
        value: its value; None for the base.
        accuracies: kNN accuracy of each seed on the test images, 0 to 1; NaN where training failed.
    """

    name: str
    value: Value | None
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds that did not fail; NaN when all did."""
        kept = [each for each in self.accuracies if not math.isnan(each)]
        return statistics.fmean(kept) if kept else math.nan


@dataclass(frozen=True, slots=True)
class SweepReport:
    """Results of a sweep.

    Attributes:
        rows: the base first, then each value of each hyper-parameter.
    """

    rows: tuple[SweepRow, ...]

    def effects(self) -> dict[str, float]:
        """Return each hyper-parameter's spread of means, over its values and the base, largest first."""
        means: dict[str, list[float]] = {}
        for row in self.rows[1:]:
            means.setdefault(row.name, [self.rows[0].mean]).append(row.mean)
        spread = {name: _spread(values) for name, values in means.items()}
        return dict(sorted(spread.items(), key=lambda item: -item[1]))

    def seed_spread(self) -> float:
        """Return the largest spread between the seeds of one setting; 0 with one seed."""
        return max(_spread(row.accuracies) for row in self.rows)

    def to_json(self) -> dict[str, JSON]:
        """Return the report as a JSON object; a failed training's accuracy is null."""
        rows: list[JSON] = [
            {
                "name": row.name,
                "value": row.value,
                "knn_accuracy": None if math.isnan(row.mean) else row.mean,
                "knn_accuracies": [None if math.isnan(each) else each for each in row.accuracies],
            }
            for row in self.rows
        ]
        effects: dict[str, JSON] = dict(self.effects())
        return {"rows": rows, "effects": effects, "seed_spread": self.seed_spread()}


def sweep(base: TrainSettings, varied: Mapping[str, Sequence[Value]], *, seeds: int = 1) -> SweepReport:
    """Train the base and each variation, and report the effect of each hyper-parameter on the kNN accuracy.

    Args:
        base: the setting from which each other differs in one value; `out` is the folder of all runs. There must be
            test images: `test`, or data that come with some.
        varied: values by the names of `TrainSettings`.
        seeds: trainings of each setting, with seeds 0, 1, …

    Raises:
        InvalidArgumentError: a name or value cannot be varied, there are no test images, or the folder holds runs of
            another base.
    """
    if seeds < 1:
        raise InvalidArgumentError("--seeds must be at least 1", field="seeds")
    settings: list[tuple[str, Value | None, TrainSettings]] = [(_BASE, None, base)]
    for name, values in varied.items():
        if name in _FIXED or name not in {field.name for field in dataclasses.fields(TrainSettings)}:
            raise InvalidArgumentError(f"--vary {name.replace('_', '-')}: no option that can be varied", field="vary")
        refuse_ignored(base.objective, [name])
        # All are checked before the first is trained.
        changes: list[dict[str, Any]] = [{name: value} for value in values]
        settings += [(name, change[name], dataclasses.replace(base, **change)) for change in changes]
    rows = [
        SweepRow(name, value, tuple(_train(_place(setting, name, value, seed)) for seed in range(seeds)))
        for name, value, setting in settings
    ]
    return SweepReport(tuple(rows))


def parse_variation(text: str) -> tuple[str, tuple[Value, ...]]:
    """Parse `learning-rate=1e-4,1e-3` into the setting's name and its values, each of the setting's own type.

    Raises:
        InvalidArgumentError: it is not of that form, or a value is not of the type.
    """
    option, equals, values = text.partition("=")
    name = option.strip().lstrip("-").replace("-", "_")
    kind = get_type_hints(TrainSettings).get(name)
    if not equals or kind is None or not values.strip():
        raise InvalidArgumentError(f"--vary {text}: say it like learning-rate=1e-4,1e-3", field="vary")
    return name, tuple(_parse(option, kind, value.strip()) for value in values.split(","))


def _parse(option: str, kind: object, text: str) -> Value:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
    except (ValueError, KeyError) as error:
        raise InvalidArgumentError(f"--vary {option}: {text} is no value of it", field="vary") from error
    allowed = get_args(kind)
    if allowed and text not in allowed:
        raise InvalidArgumentError(f"--vary {option}: {text} is none of {', '.join(allowed)}", field="vary")
    return text


def _place(setting: TrainSettings, name: str, value: Value | None, seed: int) -> TrainSettings:
    folder = _BASE if value is None else f"{name.replace('_', '-')}={value}"
    return dataclasses.replace(setting, out=setting.out / f"{folder}-seed{seed}", seed=seed)


def _train(settings: TrainSettings) -> float:
    """Train one run, unless it exists, and return its kNN accuracy; NaN when the loss was no longer a number."""
    from imagekin.training.loop.run_folder import differences
    from imagekin.training.loop.trainer import pretrain

    started = (settings.out / CONFIG_FILE).exists()
    if started and (differing := differences(settings, TrainSettings.load(settings.out))):
        raise InvalidArgumentError(
            f"{settings.out} is a run with another {differing[0].replace('_', '-')}; name another --out", field="out"
        )
    if not (settings.out / REPORT_FILE).exists():
        try:
            pretrain(settings, resume=started)
        except FailedPreconditionError as error:
            logger.warning("%s: %s", settings.out.name, error)
            return math.nan
    scores = read_scores(settings.out)
    if "knn_accuracy" not in scores:
        raise InvalidArgumentError("a sweep is judged on test images: name some with --test", field="test")
    accuracy = float(scores["knn_accuracy"])
    logger.info("%s", json.dumps({"run": settings.out.name, "knn_accuracy": accuracy}))
    return accuracy


def _spread(values: Sequence[float]) -> float:
    kept = [each for each in values if not math.isnan(each)]
    return max(kept) - min(kept) if kept else 0.0
