"""Does SupCon pay on the first day? Frozen, adapted and fine-tuned encoders, beside what a timm user would write.

    python bench/encoders/sets.py DATA SETS
    python bench/first_day.py --train SETS/groceries-train.tar --test SETS/groceries-test.tar --out FOLDER [--size 224]
                              [--rows adapted,tuned,user] [--objectives supcon,joint,…] [--seeds 0,1,2] [--epochs 8]

Rows: `frozen` (adopted, not trained: its linear figure is a timm user's logistic regression), `adapted` (a head as
`imagekin adapt` trains it, on embeddings of the images and of two crops of each), `tuned` (`imagekin train --encoder`),
and `user` (`encoders/timm_user.py`, cross-entropy in the mean CPU seconds of that seed's tuned encoders). CPU seconds
are those of all threads, with loading, export and checks, without the judging. All are judged alike, by
`encoders/judge.py`. What is finished is kept in FOLDER and not made again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import cached_property, partial
from pathlib import Path
from statistics import mean, pstdev
from typing import Any, get_args

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from bench.encoders.judge import Embedded, Figures, Judge
from imagekin import files
from imagekin.encoder.runtime.session import Encoder
from imagekin.training.adaptation.residual_head import train_head
from imagekin.training.adaptation.settings import AdaptObjective, AdaptSettings
from imagekin.training.adaptation.view_embeddings import embed_views

ROOT = Path(__file__).resolve().parents[1]
ROWS = ("adapted", "tuned", "user")
SHOWN = tuple(field.name for field in fields(Figures))
VIEWS = 2
Row = dict[str, Any]


class FirstDay:
    """The rows of one set.

    Args:
        options: of the command.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        frozen = options.out / "frozen.onnx"
        adopt = ("adopt", options.encoder, "--size", str(options.size), "--out", str(frozen))
        if not frozen.exists():
            _run(_imagekin(*adopt))
        self._encoder = _open(frozen)
        self._judge = Judge(options.train, options.test, self._encoder.metadata.preprocess, options.corrupted)

    def rows(self) -> Iterator[Row]:
        """Make and judge everything; trainings come last, seed by seed."""
        options = self._options
        yield self._kept("frozen", 0, lambda: {"cpu_seconds": 0.0, **asdict(self._judge.figures(self._frozen))})
        for objective in options.objectives if "adapted" in options.rows else ():
            for seed in options.seeds:
                yield self._kept(f"adapted, {objective}", seed, partial(self._adapted, objective, seed))
        for seed in options.seeds:
            tuned = [
                self._kept(f"tuned, {objective}", seed, partial(self._tuned, objective, seed))
                for objective in (options.objectives if "tuned" in options.rows else ())
            ]
            yield from tuned
            if tuned and "user" in options.rows:
                seconds = mean(row["cpu_seconds"] for row in tuned)
                yield self._kept("user's cross-entropy", seed, partial(self._user, seconds, seed))

    @cached_property
    def _frozen(self) -> Embedded:
        return self._judge.embed(self._encoder.embed_pixels)

    def _adapted(self, objective: AdaptObjective, seed: int) -> Row:
        """Train a head. All heads share the embeddings, whose CPU seconds count for each."""
        cost = self._options.out / "embedding.cost.json"
        began = time.process_time()
        views = embed_views(self._encoder, self._judge.train, VIEWS, cache_dir=self._options.out / "cache")
        if not cost.exists():
            files.write_text(cost, json.dumps(time.process_time() - began))
        began = time.process_time()
        settings = AdaptSettings(objective=objective, seed=seed, views=VIEWS)
        head = train_head(views, self._judge.train.labels, settings)
        seconds = time.process_time() - began + float(json.loads(cost.read_text()))
        return {"cpu_seconds": seconds, **asdict(self._judge.figures(self._frozen, head.apply_to))}

    def _tuned(self, objective: str, seed: int) -> Row:
        options, run = self._options, self._options.out / f"tuned-{objective}-{seed}"
        size = ("--encoder", options.encoder, "--image-size", str(options.size))
        how = ("--objective", objective, "--epochs", str(options.epochs), "--seed", str(seed))
        alike = ("--precision", "float32", "--threads", "1", "--no-report", "--overwrite")
        seconds = _run(_imagekin("train", options.train, "--out", str(run), *size, *how, *alike))
        return {"cpu_seconds": seconds, **self._judged(run / "model.onnx")}

    def _user(self, budget: float, seed: int) -> Row:
        options, model = self._options, self._options.out / f"user-{seed}.onnx"
        script = (sys.executable, str(ROOT / "bench" / "encoders" / "timm_user.py"), options.train, str(model))
        seconds = _run((*script, options.encoder, str(options.size), str(budget), str(seed)))
        return {"cpu_seconds": seconds, **self._judged(model)}

    def _judged(self, model: Path) -> Row:
        return asdict(self._judge.figures(self._judge.embed(_open(model).embed_pixels)))

    def _kept(self, name: str, seed: int, make: Callable[[], Row]) -> Row:
        """Return a row that an earlier call made, or make it."""
        path = self._options.out / f"{name}-{seed}.row.json"
        if not path.exists():
            files.write_text(path, json.dumps({"row": name, "seed": seed, **make()}))
        row: Row = json.loads(path.read_text())
        print(json.dumps(row), flush=True)
        return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Make, judge and print each row as it is done, then a table of means over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=_names, default=ROWS)
    parser.add_argument("--objectives", type=_names, default=get_args(AdaptObjective))
    parser.add_argument("--seeds", type=lambda text: tuple(map(int, text.split(","))), default=(0,))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--corrupted", type=int, default=100)
    options = parser.parse_args(arguments)
    options.train, options.test = (str(Path(each).resolve()) for each in (options.train, options.test))
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    by_name: dict[str, list[Row]] = {}
    for row in FirstDay(options).rows():
        by_name.setdefault(row["row"], []).append(row)
    table = Table("row", *SHOWN, "CPU seconds")
    for name, rows in by_name.items():
        cells = (_cell([100 * row[figure] for row in rows]) for figure in SHOWN)
        table.add_row(name, *cells, f"{mean(row['cpu_seconds'] for row in rows):,.0f}")
    Console(width=180).print(table)


def _open(model: Path) -> Encoder:
    return Encoder.open(model, device="cpu", threads=1)


def _imagekin(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "imagekin", *arguments)


def _run(command: Sequence[str]) -> float:
    """Run a command; return its CPU seconds."""
    before = os.times()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def _cell(values: Sequence[float]) -> str:
    """Return the mean of the seeds in percent, and their standard deviation where there are several."""
    return f"{mean(values):.1f}" + (f" ± {pstdev(values):.1f}" if len(values) > 1 else "")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    main()
