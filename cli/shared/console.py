"""Print tables, one JSON line, failures and figures. Rich is loaded only in a terminal."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from imagekin.counting import counted
from imagekin.errors import ImageError

if TYPE_CHECKING:
    from imagekin.cli.shared.image_sources import Tally
    from imagekin.sources.ignored import Ignored
    from imagekin.sources.joined import Plan

_LISTED_FAILURES = 20
# Rows that a terminal's table holds at once; later ones begin a new table, so that memory stays bounded.
_TABLE_ROWS = 1000


class Rows:
    """Print rows under headings as they come: a table in a terminal, tab-separated lines elsewhere.

    Args:
        headings: one per column.
        silent: show nothing, because the answer is JSON.
    """

    def __init__(self, headings: Sequence[str], *, silent: bool = False) -> None:
        self._headings = headings
        self._silent = silent
        self._table = sys.stdout.isatty()
        self._waiting: list[Sequence[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()

    def add(self, *cells: object) -> None:
        """Print one row; None is an empty cell, a float has four decimals."""
        if self._silent:
            return
        texts = [_text(cell) for cell in cells]
        if not self._table:
            print("\t".join(texts))
            return
        self._waiting.append(texts)
        if len(self._waiting) >= _TABLE_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            print_table(self._headings, self._waiting)
            self._waiting = []


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: drawn by rich in a terminal, in aligned columns elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Column, Table
        from rich.text import Text

        # Cells that are too long go on in the next line: a key that is cut off names nothing.
        table = Table(*(Column(heading, overflow="fold") for heading in headings))
        for row in rows:
            table.add_row(*map(Text, row))  # Text, because a key may look like markup
        Console().print(table)
        return
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_json(answer: Mapping[str, Any]) -> None:
    """Print the one JSON object that `--json` promises, on a line of its own."""
    print(json.dumps(_finite(answer), ensure_ascii=False, allow_nan=False), flush=True)


def say(text: str) -> None:
    """Print a line on standard error, apart from the answer."""
    print(text, file=sys.stderr, flush=True)


def say_plan(plan: "Plan") -> None:
    """Print the labels and splits of a source on standard error, before work begins."""
    for line in plan.lines():
        say(f"imagekin: {line}")


def say_ignored(ignored: "Ignored") -> None:
    """Print on standard error which files were passed over, and why."""
    for line in ignored.lines():
        say(f"imagekin: {line}")


def plan_json(plan: "Plan", ignored: "Ignored") -> dict[str, Any]:
    """Return as JSON the classes and splits of a source, and the files that were passed over."""
    return {"classes": dict(plan.classes), "splits": dict(plan.splits), "ignored": ignored.to_json()}


def list_failures(failed: Sequence[tuple[str, str]], count: int) -> None:
    """List failures on standard error: the first 20, then the number of further ones."""
    for key, reason in failed[:_LISTED_FAILURES]:
        say(f"imagekin: {key}: {reason}")
    if count > _LISTED_FAILURES:
        say(f"imagekin: … and {count - _LISTED_FAILURES:,} more")


def failures_json(failed: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Return failures as JSON."""
    return [{"key": key, "reason": reason} for key, reason in failed]


def rate(count: int, seconds: float) -> float:
    """Return the number per second, 0 when no time passed."""
    return count / seconds if seconds > 0 else 0.0


def totals(tally: "Tally", seconds: float) -> dict[str, Any]:
    """Return the JSON totals of a stream of images."""
    return {
        "images": tally.images,
        "failed_count": tally.failed_count,
        "failed": failures_json(tally.failed),
        "ignored": tally.ignored.to_json(),
        "seconds": seconds,
        "images_per_second": rate(tally.images, seconds),
    }


def summary(done: str, tally: "Tally", seconds: float) -> str:
    """Return the closing line of a stream of images."""
    failed = f", {tally.failed_count:,} failed" if tally.failed_count else ""
    served = counted(tally.served, "image")
    return f"{done} {served}{failed} in {seconds:.1f} s ({rate(tally.images, seconds):,.0f} images/s)"


def no_images(sources: Sequence[str]) -> ImageError:
    """Return the error of sources that hold no image."""
    return ImageError(f"there are no images in {', '.join(sources[:3])}{' …' if len(sources) > 3 else ''}")


def fail_if_nothing(tally: "Tally", sources: Sequence[str]) -> None:
    """End with status 1 when no image of the sources was served; raise ImageError when there was none at all."""
    if not tally.images:
        raise no_images(sources)
    if not tally.served:
        raise ImageError(f"of {counted(tally.images, 'image')}, none could be served")


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, with null."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
