"""Shared parts of the measurements: interleaved rounds, medians, the table and the JSON line at the end.

Machines are noisy, so nothing here is measured alone: `interleave` runs every contender once a round, in turn, and
ratios are taken within a round before their median is.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

from imagekin.machine import cores, processor

_REST_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Target:
    """A figure with its bound.

    Attributes:
        name: what was measured.
        value: the median.
        bound: the limit.
        at_least: whether `bound` is a lower limit, else an upper one.
    """

    name: str
    value: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """True when the figure keeps within its bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def interleave(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every contender once a round, in turn, after one uncounted round; return their figures by name.

    Each begins after a pause, because threads of OpenMP and of other libraries spin for a while after a call, at the
    cost of the next contender.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, measure in contenders.items():
            time.sleep(_REST_SECONDS)
            value = measure()
            if number > 0:
                figures[name].append(value)
    return figures


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Return the median of the ratios of two contenders' figures, round by round."""
    return statistics.median(over / under for over, under in zip(numerator, denominator, strict=True))


def resident_megabytes(process: str = "self") -> float:
    """Return the resident memory of a process, MiB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def hardware() -> dict[str, str | int]:
    """Describe the machine: processor, logical cores that this process may use, system, Python."""
    python = platform.python_version()
    return {"processor": processor(), "cores": cores(), "system": platform.system(), "python": python}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the installed version of each package, or "absent"."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def report(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    targets: Sequence[Target],
    figures: Mapping[str, object],
    packages: Sequence[str] = (),
) -> None:
    """Print the table, each target with its verdict, and one JSON line that holds everything.

    Args:
        title: what was measured, with its setting.
        columns: headings of the table.
        rows: its cells.
        targets: figures that have a bound.
        figures: every figure by name, JSON-serialisable.
        packages: distributions whose versions matter.
    """
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for target in targets:
        relation = "≥" if target.at_least else "≤"
        verdict = "met" if target.met else "MISSED"
        console.print(f"{target.name}: {target.value:.4g} (target {relation} {target.bound:.4g}): {verdict}")
    line = {
        "bench": title,
        "figures": figures,
        "targets": [asdict(target) | {"met": target.met} for target in targets],
        "versions": versions(packages),
        "hardware": hardware(),
    }
    print(json.dumps(line, ensure_ascii=False, allow_nan=False))
