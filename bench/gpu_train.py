"""Measure training on one GPU: speed, accuracy on CIFAR-10 after ten minutes, and the memory of the tiled loss.

    python bench/gpu_train.py --out gpu-train [--minutes 9.5] [--piece NAME]     # again, until nothing is left
    python bench/gpu_train.py --out gpu-train --score                            # where only the scores are missing
    python bench/gpu_train.py --out small --small                                # the same on a CPU, on a few digits

Each call does what is left of the pieces below within `--minutes`, and keeps what it found in OUT; a training that does
not end in time goes on in the next call. It takes CIFAR-10 as `class/NNNN.jpg` archives from `--data` (default
IMAGEKIN_DATA). Without a GPU the table says "not measured". Scores are those of the exported models, which any machine
can judge: `--unscored` leaves that to a later call with `--score`, for which OUT needs no more than `figures.json` and
each piece's `config.json` and `model.onnx`.

    speed          ResNet-18, 32 px, two views, batches of 1,024: images/s, as it is and compiled. Target ≥ 20,000
    tiled          peak memory of value and gradient of the loss of 131,072 vectors of 128. Target < 0.5 GB
    supcon         `--train-minutes` of training; kNN and linear accuracy of the last epoch. Target ≥ 95 %
    cross-entropy  the same encoder, views and epochs. Target: SupCon ≥ 1 point above it
    rotation       the same minutes for RotNet's task, beside the paper's figure

How long a training is in epochs follows from its speed, measured first. The images are JPEGs of quality 75: published
figures are for the lossless ones. RotNet (Gidaris et al. 2018, arXiv:1803.07728) reports 91.16 %: a Network in Network
of four blocks learns to tell rotations, then a convolutional block and a linear layer are trained with labels on the
feature maps of its frozen second block. Here only a logistic regression is trained, on the frozen pooled features of a
ResNet-18.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import Target, report
from imagekin import files

ROOT = Path(__file__).resolve().parents[1]
PIECES = ("speed", "tiled", "supcon", "cross-entropy", "rotation")
LEARNED = PIECES[2:]
STATE_FILE = "figures.json"
NOT_MEASURED = "not measured"
DIM = 128

Options = dict[str, Any]
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters of the measurement.

    Attributes:
        device: where.
        data: training images.
        test: held-out images; empty when the data have their own.
        options: of all trainings, by the names of `TrainSettings`.
        seconds: of each training.
        vectors: of the tiled loss.
        compiled: whether the compiled encoder is tried as well.
    """

    device: str
    data: str
    test: str
    options: Options
    seconds: float
    vectors: int
    compiled: bool


SMALL = Plan(
    device="cpu",
    data="digits",
    test="",
    options={"limit": 12, "batch_size": 40, "threads": 1, "warmup_epochs": 0.0},
    seconds=1.0,
    vectors=2048,
    compiled=False,
)
# SupCon's reference recipe for batches of 1,024 (rate 0.5, temperature 0.1), with the stronger decay that short
# trainings of ResNets take, and a running mean of the weights. On 5,000 held-out training images, after 14 epochs: the
# reference's views and head 80.3 % kNN, milder views (without holes) 81.6 %, these without a head 86.1 %.
RECIPE: Options = {
    **{"encoder": "resnet18", "image_size": 32, "views": "mild", "batch_size": 1024, "optimiser": "sgd"},
    **{"learning_rate": 0.5, "weight_decay": 5e-4, "warmup_epochs": 5.0, "temperature": 0.1, "ema": 0.99},
}
# What one method has of its own.
OWN: Mapping[str, Options] = {
    "supcon": {"objective": "supcon", "projection_dim": 0},
    "cross-entropy": {"objective": "cross-entropy", "label_smoothing": 0.1},
    "rotation": {"objective": "rotation", "batch_size": 256, "learning_rate": 0.1},
}


def full_plan(data: Path, minutes: float = 10.0) -> Plan:
    """Return the plan for a GPU, with CIFAR-10 from the folder `data` and trainings of that length."""
    train, test = (str(data / f"cifar10-{part}.tar.gz") for part in ("train", "test"))
    return Plan("cuda", train, test, RECIPE, seconds=60 * minutes, vectors=131_072, compiled=True)


def options_of(plan: Plan, method: str) -> Options:
    """Return the options of one method's training."""
    own = OWN[method] if plan.device == "cuda" else {"objective": OWN[method]["objective"]}
    return {**plan.options, **own, "device": plan.device}


def measure_rate(plan: Plan, options: Options, out: Path, epochs: int = 3) -> tuple[float, int]:
    """Train for a few epochs with the product's own loop.

    Returns:
        Images/s, the median without the first epoch; and the number of images.
    """
    from imagekin.training.data.run_data import load_data
    from imagekin.training.loop.devices import find_device, torch_settings
    from imagekin.training.loop.trainer import Trainer
    from imagekin.training.objectives.registry import find_objective
    from imagekin.training.options import resolve_settings
    from imagekin.training.settings import METRICS_FILE

    settings = resolve_settings(plan.data, out, {**options, "epochs": epochs}, resume=False)
    images, _ = load_data(settings)
    out.mkdir(parents=True, exist_ok=True)
    metrics = out / METRICS_FILE
    metrics.unlink(missing_ok=True)
    device = find_device(settings.device)
    with torch_settings(settings, device):
        Trainer(settings, images, device, find_objective(settings.objective), None).run()
    rates = [float(json.loads(line)["images_per_second"]) for line in metrics.read_text().splitlines()]
    return statistics.median(rates[1:]), len(images)


def speed(plan: Plan, out: Path) -> Figures:
    """Measure SupCon's images/s, and those of the compiled encoder."""
    options = options_of(plan, "supcon")
    rate, images = measure_rate(plan, options, out / "speed")
    found: Figures = {"images_per_second": rate, "images": images}
    if plan.compiled:
        options["compile"] = True
        found["compiled_images_per_second"] = measure_rate(plan, options, out / "speed-compiled")[0]
    return found


def tiled(plan: Plan) -> Figures:
    """Measure the peak memory (vectors and gradient included) and the time of the loss of many vectors."""
    import torch

    from imagekin.training.objectives.contrastive import contrastive_loss

    def run() -> float:
        started = time.perf_counter()
        vectors = torch.randn(plan.vectors, DIM, device=plan.device, requires_grad=True)
        groups = torch.randint(1000, (plan.vectors,), device=plan.device)
        (gradient,) = torch.autograd.grad(contrastive_loss(vectors, groups, 0.1), vectors)
        float(gradient.sum())  # waits for the device
        return time.perf_counter() - started

    if plan.device == "cpu":
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = run()
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    else:
        run()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds = run()
        peak = torch.cuda.max_memory_allocated() - before
    return {"vectors": plan.vectors, "peak_bytes": peak, "seconds": seconds}


def length_of(plan: Plan, method: str, out: Path, state: Figures) -> Figures:
    """Return the number of epochs of a method, and whether it is compiled; kept in `state` once it is known.

    SupCon's speed is known from its own piece. Cross-entropy takes the epochs of SupCon.
    """
    lengths: dict[str, Figures] = state.setdefault("lengths", {})
    if method in lengths:
        return lengths[method]
    fast = state["pieces"].get("speed", {})
    compiled = fast.get("compiled_images_per_second", 0) > fast.get("images_per_second", 0)
    if method == "cross-entropy" and "supcon" in lengths:
        return lengths.setdefault(method, dict(lengths["supcon"]))
    options = options_of(plan, method) | ({"compile": True} if compiled else {})
    if method == "supcon" and fast:
        rate, images = fast["compiled_images_per_second" if compiled else "images_per_second"], fast["images"]
    else:
        rate, images = measure_rate(plan, options, out / f"{method}-speed")
    return lengths.setdefault(method, {"epochs": max(1, round(plan.seconds * rate / images)), "compile": compiled})


def learn(plan: Plan, method: str, out: Path, state: Figures, left: float) -> Figures | None:
    """Train one method for the planned time, over several calls if needed; None while it is not finished.

    Args:
        plan: of the measurement.
        method: one of LEARNED.
        out: the measurement's folder.
        state: of the measurement; the training's length is kept there.
        left: seconds of this call.
    """
    started = time.monotonic()
    length = length_of(plan, method, out, state)
    save(out, state)
    options = {**options_of(plan, method), "checkpoint_seconds": 60.0, "epochs": length["epochs"]}
    options |= {"compile": True} if length["compile"] else {}
    command = [sys.executable, "-m", "imagekin.training", plan.data, "--out", str(out / method), "--resume", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(
            [*command, *flags(options)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=left - (time.monotonic() - started),
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        sys.exit(f"{method}: the training failed")
    answer = json.loads(done.stdout.splitlines()[-1])
    return {name: answer[name] for name in ("epochs", "train_seconds", "images_per_second", "loss")}


def judge(plan: Plan, run: Path) -> Figures:
    """Return the scores of a run's exported model on the plan's test images."""
    from imagekin.training.data.run_data import load_data
    from imagekin.training.evaluation.evaluate import evaluate_artifact
    from imagekin.training.settings import MODEL_FILE, TrainSettings

    settings = replace(TrainSettings.load(run), data=plan.data, test=plan.test)
    train, test = load_data(settings)
    if test is None:
        sys.exit(f"{plan.data} has no test images")
    scores = evaluate_artifact(run / MODEL_FILE, train, test, seed=settings.seed)
    return {"knn_accuracy": scores.knn_accuracy, "linear_accuracy": scores.linear_accuracy}


def flags(options: Options) -> list[str]:
    """Return the options as command-line flags."""
    given = []
    for name, value in options.items():
        given += ["--" + name.replace("_", "-")] if value is True else ["--" + name.replace("_", "-"), str(value)]
    return given


def save(out: Path, state: Figures) -> None:
    """Save the figures found so far."""
    files.write_text(out / STATE_FILE, json.dumps(state, indent=2))


def work(plan: Plan, out: Path, pieces: Sequence[str], seconds: float, *, train: bool, score: bool) -> Figures:
    """Do the remaining pieces within so many seconds, and return everything found so far.

    Args:
        plan: of the measurement.
        out: the measurement's folder.
        pieces: which ones to do.
        seconds: of this call; what is begun may take longer, but for a training.
        train: whether to do more than scoring what is trained already.
        score: whether to score what is trained.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / STATE_FILE
    state: Figures = json.loads(path.read_text()) if path.exists() else {"pieces": {}}
    end = time.monotonic() + seconds
    for piece in pieces:
        left = end - time.monotonic()
        if train and piece not in state["pieces"] and left > 0:
            if piece in LEARNED:
                found = learn(plan, piece, out, state, left)
            else:
                found = speed(plan, out) if piece == "speed" else tiled(plan)
            if found is None:
                print(f"{piece}: goes on in the next call", file=sys.stderr)
                continue
            state["pieces"][piece] = found
            save(out, state)
        trained = state["pieces"].get(piece, {})
        if score and piece in LEARNED and trained and "knn_accuracy" not in trained and end > time.monotonic():
            trained |= judge(plan, out / piece)
            save(out, state)
    return state


def rows_of(found: Mapping[str, Figures]) -> list[tuple[str, str]]:
    """Return the table."""

    def cell(piece: str, name: str, form: Callable[[float], str]) -> str:
        value = found.get(piece, {}).get(name)
        return NOT_MEASURED if value is None else form(value)

    rows = [
        ("SupCon, two views, images/s", cell("speed", "images_per_second", "{:,.0f}".format)),
        ("… compiled", cell("speed", "compiled_images_per_second", "{:,.0f}".format)),
        ("tiled loss, peak memory", cell("tiled", "peak_bytes", lambda value: f"{value / 1e9:.3f} GB")),
        ("… seconds", cell("tiled", "seconds", "{:.2f}".format)),
    ]
    for method in LEARNED:
        rows += [(f"{method}, kNN accuracy", cell(method, "knn_accuracy", "{:.2%}".format))]
        rows += [(f"{method}, linear accuracy", cell(method, "linear_accuracy", "{:.2%}".format))]
        rows += [(f"{method}, epochs", cell(method, "epochs", "{:,.0f}".format))]
        rows += [(f"{method}, seconds of training", cell(method, "train_seconds", "{:.0f}".format))]
    return [*rows, ("RotNet, as published (see the script's text)", "91.16%")]


def targets_of(found: Mapping[str, Figures]) -> list[Target]:
    """Return the targets of the measured figures."""
    targets = []
    if "speed" in found:
        rates = (found["speed"].get(name, 0) for name in ("images_per_second", "compiled_images_per_second"))
        best = max(rates)
        targets.append(Target("ResNet-18, two views, images/s", best, 20_000, True))
    if "tiled" in found:
        targets.append(Target("tiled loss of 131,072, GB", found["tiled"]["peak_bytes"] / 1e9, 0.5, False))
    for kind in ("knn_accuracy", "linear_accuracy"):
        scores = {method: found[method][kind] for method in LEARNED if kind in found.get(method, {})}
        if "supcon" in scores:
            targets.append(Target(f"SupCon, {kind}", scores["supcon"], 0.95, True))
        if "supcon" in scores and "cross-entropy" in scores:
            points = 100 * (scores["supcon"] - scores["cross-entropy"])
            targets.append(Target(f"SupCon over cross-entropy, {kind}, points", points, 1.0, True))
    return targets


def main(arguments: Sequence[str]) -> None:
    """Measure the remaining pieces and report everything."""
    parser = argparse.ArgumentParser(description="Training on one GPU.")
    parser.add_argument("--out", type=Path, default=Path("gpu-train"), help="folder that keeps what was found")
    parser.add_argument("--minutes", type=float, default=9.5, help="of this call")
    parser.add_argument("--piece", choices=PIECES, help="only this one")
    parser.add_argument("--train-minutes", type=float, default=10.0, help="of SupCon's training, and of rotation's")
    parser.add_argument("--score", action="store_true", help="only score what is trained, on any machine")
    parser.add_argument("--unscored", action="store_true", help="leave the scores to a later call with --score")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("IMAGEKIN_DATA", ROOT.parent / "shared/data")))
    parser.add_argument("--small", action="store_true", help="on a CPU, on a few digits: no figure means anything")
    given = parser.parse_args(arguments)

    import torch

    here = torch.cuda.is_available()
    pieces = (given.piece,) if given.piece else PIECES
    state: Figures = {"pieces": {}}
    if given.small or given.score or here:
        plan = SMALL if given.small else full_plan(given.data, given.train_minutes)
        seconds = 60 * given.minutes
        state = work(plan, given.out, pieces, seconds, train=not given.score, score=not given.unscored)
    found = state["pieces"]
    if here and not given.small:
        state["gpu"] = torch.cuda.get_device_name()
        save(given.out, state)
    name = "a CPU, small" if given.small else state.get("gpu", "no GPU here")
    unscored = [piece for piece in LEARNED if piece in found and "knn_accuracy" not in found[piece]]
    figures = {**found, "gpu": name, "left": [piece for piece in PIECES if piece not in found], "unscored": unscored}
    targets = [] if given.small else targets_of(found)
    report(f"training on {name}", ("what", "measured"), rows_of(found), targets, figures, ["torch", "imagekin"])


if __name__ == "__main__":
    main(sys.argv[1:])
