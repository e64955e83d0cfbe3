"""Compare all objectives under one protocol: the quality of their features, and their cost.

    OMP_NUM_THREADS=1 python bench/objectives.py --out FOLDER [--objectives supcon,simclr] [--seeds 0,1,2] [--held-out]

The same tiny encoder, the same images, batch size and epochs for all: CIFAR-10 as JPEG of quality 75, the first 100
training images of each class, 60 epochs of batches of 64, judged on all 10,000 test images by the last epoch's exported
model. Each objective trains with the settings that the product recommends for it; what was tuned was tuned with
`--held-out`, which judges on the 500 training images of each class that follow and never opens the test set. Random
weights are the same encoder after no epoch.

A row is written to FOLDER when it is finished, and not made again; a training that was cut off goes on. About twenty
minutes of one core in all. `--trust` adds calibration and robustness of supcon and cross-entropy.
Expected: supcon ahead of cross-entropy, everything ahead of random weights, in kNN and in linear accuracy.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import Target, report
from imagekin import files
from imagekin.training.data.images import ImageSet, load_images
from imagekin.training.presets import for_small_images
from imagekin.training.settings import METRICS_FILE, MODEL_FILE, TrainSettings

RANDOM = "random weights"
OBJECTIVES = (
    "supcon",
    "cross-entropy",
    "sincere",
    "mixup-supcon",
    "supmoco",
    "triplet",
    "n-pairs",
    "self-distillation",
    "simclr",
    "moco",
    "rotation",
    "jigsaw",
    "context",
    "exemplar",
    "deepcluster",
)
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
EPOCHS = 60
LIMIT = 100
BATCH = 64
HELD_OUT = 500
"""Images of each class that are judged on when settings are chosen."""
CORRUPTED = 100
"""Test images of each class that are corrupted."""
TRUST = (
    "knn_ece",
    "knn_ece_scaled",
    "linear_ece",
    "linear_ece_scaled",
    "knn_corrupted",
    "linear_corrupted",
    "knn_mce",
    "linear_mce",
)


def train(settings: TrainSettings, images: ImageSet, test: ImageSet) -> dict[str, float]:
    """Train one encoder as `imagekin train` does, on images loaded already; return its row."""
    import torch

    from imagekin.training.export.export import export_run
    from imagekin.training.loop.devices import torch_settings
    from imagekin.training.loop.run_folder import open_run
    from imagekin.training.loop.trainer import Trainer
    from imagekin.training.objectives.registry import find_objective

    with open_run(settings, resume=True, overwrite=False) as saved, torch_settings(settings, torch.device("cpu")):
        trainer = Trainer(settings, images, torch.device("cpu"), find_objective(settings.objective), saved)
        trainer.run()
        trainer.save()
        scores = export_run(settings.out, train=images, test=test).scores
    if scores is None:
        raise RuntimeError("the data have no labels to judge by")
    return {"knn": scores.knn_accuracy, "linear": scores.linear_accuracy, "seconds": fastest(settings)}


def fastest(settings: TrainSettings) -> float:
    """Return the seconds that training takes at the speed of its fastest epoch, the one least disturbed by others."""
    lines = (settings.out / METRICS_FILE).read_text().splitlines()
    return settings.epochs * min((float(json.loads(line)["seconds"]) for line in lines), default=0.0)


def settings_for(objective: str, seed: int, options: argparse.Namespace) -> TrainSettings:
    """Return the recommended settings of the objective, with the protocol's encoder, epochs and seed."""
    name = f"{objective.replace(' ', '-')}-{seed}"
    base = for_small_images("cifar10-train.tar.gz", options.out / name, "supcon" if objective == RANDOM else objective)
    fixed: dict[str, Any] = {
        "epochs": 0 if objective == RANDOM else options.epochs,
        "batch_size": BATCH,
        "seed": seed,
        "threads": 1,
        "device": "cpu",
        "checkpoint_seconds": 15.0,
    }
    given = dict(pair.split("=", 1) for pair in options.set)
    kinds = {field.name: type(getattr(base, field.name)) for field in dataclasses.fields(base)}
    changed = {name: kinds[name](value) for name, value in given.items()}
    return dataclasses.replace(base, **(fixed | changed))


def load(options: argparse.Namespace) -> tuple[ImageSet, ImageSet]:
    """Load the training and the test images."""
    limit = options.limit + HELD_OUT * options.held_out
    images = load_images(str(options.data / "cifar10-train.tar.gz"), size=32, limit=limit)
    if not options.held_out:
        return images, load_images(str(options.data / "cifar10-test.tar.gz"), size=32)
    fitted = first_of_each(images, options.limit)
    return images.take(fitted), images.take(np.setdiff1d(np.arange(len(images)), fitted))


def collect(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return the finished rows by objective, after computing those that are missing."""
    rows: dict[str, list[dict[str, Any]]] = {}
    data: tuple[ImageSet, ImageSet] | None = None
    for seed in options.seeds:
        for objective in options.objectives:
            settings = settings_for(objective, seed, options)
            path = settings.out.with_suffix(".json")
            if not path.exists():
                data = data or load(options)
                row = train(settings, *data)
                files.write_text(path, json.dumps(row) + "\n")
                print(f"{objective} {seed}: {json.dumps(row)}", flush=True)
            rows.setdefault(objective, []).append(json.loads(path.read_text()))
    return rows


def trust(options: argparse.Namespace, data: tuple[ImageSet, ImageSet]) -> dict[str, dict[str, float]]:
    """Return calibration and robustness of supcon and cross-entropy, the latter the baseline of both."""
    from imagekin.training.evaluation.judge import judge
    from imagekin.training.evaluation.settings import JudgeSettings

    train_set, test_set = data
    some = test_set.take(first_of_each(test_set, CORRUPTED))
    seed = options.seeds[0]
    baseline = settings_for("cross-entropy", seed, options).out / MODEL_FILE
    figures = {}
    for objective in ("supcon", "cross-entropy"):
        settings = settings_for(objective, seed, options)
        path = settings.out.with_name(f"{settings.out.name}-trust.json")
        if not path.exists():
            model = settings.out / MODEL_FILE
            found = judge(model, train_set, test_set, JudgeSettings(calibration=True, device="cpu"))
            found |= judge(model, train_set, some, JudgeSettings(robustness=True, baseline=baseline, device="cpu"))
            files.write_text(path, json.dumps({name: found[name] for name in TRUST}) + "\n")
        figures[objective] = json.loads(path.read_text())
    return figures


def first_of_each(images: ImageSet, count: int) -> NDArray[np.int64]:
    """Return the rows of the first images of each class."""
    rows = [np.flatnonzero(images.labels == label)[:count] for label in np.unique(images.labels)]
    return np.sort(np.concatenate(rows)).astype(np.int64)


def spread(rows: Sequence[dict[str, float]], name: str) -> str:
    """Return the mean of a figure in per cent, and its deviation over seeds when there are several."""
    values = [100 * row[name] for row in rows]
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def show(
    rows: dict[str, list[dict[str, float]]], trusted: dict[str, dict[str, float]], options: argparse.Namespace
) -> None:
    """Print the table, the targets and the JSON line."""
    mean = {name: {key: statistics.mean(row[key] for row in some) for key in some[0]} for name, some in rows.items()}
    lines = [
        (name, spread(some, "knn"), spread(some, "linear"), f"{mean[name]['seconds']:.0f}", str(len(some)))
        for name, some in rows.items()
    ]
    targets = []
    for way in ("knn", "linear"):
        if {"supcon", "cross-entropy"} <= mean.keys():
            lead = mean["supcon"][way] - mean["cross-entropy"][way]
            targets.append(Target(f"supcon over cross-entropy, {way}", lead, 0.0, at_least=True))
        for name in mean if RANDOM in mean else ():
            if name != RANDOM:
                gain = mean[name][way] - mean[RANDOM][way]
                targets.append(Target(f"{name} over random weights, {way}", gain, 0.0, at_least=True))
    report(
        f"CIFAR-10 (JPEG q75), {options.limit} a class, {options.epochs} epochs, batches of {BATCH}, tiny encoder",
        ("objective", "kNN %", "linear %", "training s", "seeds"),
        lines,
        targets,
        {"rows": mean, "trust": trusted},
        ("torch", "numpy", "scikit-learn"),
    )


def main() -> None:
    """Compute missing rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("IMAGEKIN_DATA") or DEFAULT_DATA))
    parser.add_argument("--objectives", type=lambda text: text.split(","), default=[RANDOM, *OBJECTIVES])
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--limit", type=int, default=LIMIT, help="images of each class")
    parser.add_argument("--held-out", action="store_true", help="judge on further training images")
    parser.add_argument("--trust", action="store_true", help="also calibration and robustness of supcon, cross-entropy")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another setting")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = collect(options)
    show(rows, trust(options, load(options)) if options.trust else {}, options)


if __name__ == "__main__":
    main()
