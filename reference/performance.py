"""Write the page of measurements, and its plots, from the rows of `bench/results`."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reference.markdown import code, table

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results"
PAGE = "performance.md"
_HEADER = ("what", "imagekin", "peer", "ratio", "target", "recorded")
_COLOURS = ("#00796b", "#e65100", "#5e35b1", "#546e7a")


def files() -> dict[str, dict[str, Any]]:
    """Return the rows of each file of results by the name of the file."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def performance_page() -> str:
    """Return the page: a table a section, with its command, its machine and its plots."""
    return "\n".join([_INTRODUCTION, *(part for name, found in files().items() for part in _section(name, found))])


def plots() -> dict[str, bytes]:
    """Return the SVG of each plot by its path in the site."""
    return {
        _path(name, number): _drawn(curves)
        for name, found in files().items()
        for number, curves in enumerate(found.get("curves", ()))
    }


_INTRODUCTION = """# Performance

Every figure has its row here, misses too. A ratio is of contenders that took turns in one run on one machine. Above 1
imagekin does more; where the target is a bound from above, it takes more. What the figures depend on, what was tried
and what else was measured is in [the record](../bench/RESULTS.md). What was recorded before 2026-11-29 is of versions
before 0.2, and has not been measured again.
"""


def _section(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {found['section']}\n"
    yield f"{code(found['command'])}, on {found['machine']}.\n"
    rows = [
        (
            row["what"],
            row["imagekin"],
            ": ".join(filter(None, (row["peer"], row["theirs"]))),
            row["ratio"],
            ", ".join(filter(None, (row["target"], row["verdict"]))),
            row["recorded"],
        )
        for row in found["rows"]
    ]
    yield table(_HEADER, rows)
    for number, curves in enumerate(found.get("curves", ())):
        yield f"![{curves['title']}]({_path(name, number)})\n"


def _path(name: str, number: int) -> str:
    return f"plots/{name}-{number}.svg"


def _drawn(curves: Mapping[str, Any]) -> bytes:
    """Draw lines through points, or bars."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "imagekin", "font.family": "sans-serif"}):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        if "bars" in curves:
            names = list(curves["bars"])
            colours = [_COLOURS[0] if name == "imagekin" or "imagekin" not in names else _COLOURS[3] for name in names]
            bars = axes.barh(names, list(curves["bars"].values()), color=colours)
            axes.bar_label(bars, padding=3)
            axes.invert_yaxis()
            axes.margins(x=0.12)
            axes.set_xlabel(curves["y"])
        else:
            for at, (name, points) in enumerate(curves["series"].items()):
                axes.plot(*zip(*points, strict=True), marker="o", label=name, color=_COLOURS[at % len(_COLOURS)])
            axes.set_xlabel(curves["x"])
            axes.set_ylabel(curves["y"])
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False)
        axes.set_title(curves["title"], fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
