"""Does SupCon pay on the first day? Frozen, adapted and fine-tuned encoders, beside what a timm user would write.

    python bench/first_day.py --train grocery-train.tar --test grocery-test.tar --out FOLDER [--rows frozen,adapted,…]
                              [--objectives supcon,joint,…] [--seeds 0,1,2] [--epochs 8] [--encoder NAME] [--evaluate …]

Rows: `frozen` (adopted, not trained), `adapted` (`imagekin adapt`), `tuned` (`imagekin train --encoder`), and `user`,
the script of somebody who knows timm, who fine-tunes with cross-entropy for as many epochs. (Logistic regression on
frozen features is the linear figure of `frozen`.) Each is a process of its own, whose CPU seconds are measured: all
threads, with loading, export and checks, without the judging. One that is finished is not run again. All are judged
alike by `imagekin evaluate`, which `--evaluate` gives further options (`--robustness`, `--calibration`).
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from imagekin import files

ROOT = Path(__file__).resolve().parents[1]
IMAGEKIN = (sys.executable, "-m", "imagekin")
ROWS = ("frozen", "adapted", "tuned", "user")
USER = "user's cross-entropy"


@dataclass(frozen=True, slots=True)
class Task:
    """One row for one seed.

    Attributes:
        name: of the row.
        seed: of its training.
        command: makes the model.
        model: the artifact that it makes.
    """

    name: str
    seed: int
    command: tuple[str, ...]
    model: Path


def tasks(options: argparse.Namespace) -> list[Task]:
    """Return everything that is to be made, the frozen encoder first, because others start from it."""
    out, data = options.out, options.train
    frozen = out / "frozen.onnx"
    command: tuple[str, ...]
    made = [Task("frozen", 0, (*IMAGEKIN, "adopt", options.encoder, "--out", str(frozen)), frozen)]
    for seed in options.seeds:
        for objective in options.objectives:
            model = out / f"adapted-{objective}-{seed}.onnx"
            command = (*IMAGEKIN, "adapt", str(frozen), data, "--out", str(model), "--objective", objective, "--anyway")
            # A cache of its own: each row pays for its embeddings.
            alone = ("--seed", str(seed), "--cache-dir", str(out / f"cache-{objective}-{seed}"))
            made.append(Task(f"adapted, {objective}", seed, (*command, *alone), model))
        for objective in options.objectives:
            run = out / f"tuned-{objective}-{seed}"
            command = (*IMAGEKIN, "train", data, "--out", str(run), "--encoder", options.encoder, "--overwrite")
            chosen = ("--objective", objective, "--epochs", str(options.epochs), "--seed", str(seed), "--no-report")
            made.append(Task(f"tuned, {objective}", seed, (*command, *chosen), run / "model.onnx"))
        model = out / f"user-{seed}.onnx"
        script = (sys.executable, str(ROOT / "bench" / "encoders" / "timm_user.py"), data, str(model), options.encoder)
        made.append(Task(USER, seed, (*script, str(options.epochs), str(seed)), model))
    return [task for task in made if _row(task) in options.rows or task.name == "frozen"]


def run(task: Task, out: Path) -> float:
    """Make a task's model unless it is there; return the CPU seconds that it took."""
    cost = out / f"{task.model.parent.name}-{task.model.stem}.cost.json"
    if not (cost.exists() and task.model.exists()):
        before = os.times()
        subprocess.run(task.command, check=True, cwd=ROOT)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        files.write_text(cost, json.dumps({"cpu_seconds": round(spent, 1)}))
    seconds: float = json.loads(cost.read_text())["cpu_seconds"]
    return seconds


def judge(task: Task, options: argparse.Namespace) -> dict[str, float]:
    """Return the figures of `imagekin evaluate`."""
    command = (*IMAGEKIN, "evaluate", str(task.model), "--train", options.train, "--test", options.test, "--json")
    done = subprocess.run((*command, *shlex.split(options.evaluate)), check=True, cwd=ROOT, capture_output=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Make, judge and print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=_names, default=ROWS)
    parser.add_argument("--objectives", type=_names, default=("supcon", "joint", "cross-entropy", "triplet"))
    parser.add_argument("--seeds", type=lambda text: tuple(map(int, text.split(","))), default=(0,))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--evaluate", default="")
    options = parser.parse_args(arguments)
    options.train, options.test = (str(Path(each).resolve()) for each in (options.train, options.test))
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    table = Table("row", "seed", "kNN", "linear", "CPU seconds")
    results = []
    for task in tasks(options):
        seconds, figures = run(task, options.out), judge(task, options)
        knn, linear = figures["knn_accuracy"], figures["linear_accuracy"]
        table.add_row(task.name, str(task.seed), f"{knn:.2%}", f"{linear:.2%}", f"{seconds:,.0f}")
        results.append({"row": task.name, "seed": task.seed, "cpu_seconds": seconds, **figures})
    Console().print(table)
    print(json.dumps(results))


def _row(task: Task) -> str:
    return "user" if task.name == USER else task.name.partition(",")[0]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    main()
