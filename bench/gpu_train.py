"""Training on one GPU: speed, what ten minutes of it reach on CIFAR-10, and the memory of the tiled loss.

    python bench/gpu_train.py --out gpu-train [--minutes 9.5] [--piece NAME]     # again, until nothing is left
    python bench/gpu_train.py --out small --small                                # the same on a CPU, on a few digits

Each call does what is left of the pieces below within `--minutes`, and keeps what it found in OUT; a training that does
not end in time goes on in the next call. It takes CIFAR-10 as `class/NNNN.jpg` archives from `--data` (default
KINDRED_DATA). Without a GPU the table says "not measured".

    speed          ResNet-18, 32 px, two views, batches of 1,024: images/s, as it is and compiled. Target ≥ 20,000
    tiled          peak memory of value and gradient of the loss of 131,072 vectors of 128. Target < 0.5 GB
    supcon         ten minutes of training; kNN and linear accuracy of the last epoch. Target ≥ 95 %
    cross-entropy  the same encoder, views and minutes. Target: SupCon ≥ 1 point above it
    rotation       the same for RotNet's task, beside the paper's figure

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import Target, report

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
    """What is measured on what.

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
# trainings of ResNets take, and a running mean of the weights.
RECIPE: Options = {
    **{"encoder": "resnet18", "image_size": 32, "views": "supcon", "batch_size": 1024, "optimiser": "sgd"},
    **{"learning_rate": 0.5, "weight_decay": 5e-4, "warmup_epochs": 5.0, "temperature": 0.1, "ema": 0.99},
}
# What one method has of its own.
OWN: Mapping[str, Options] = {
    "supcon": {"objective": "supcon"},
    "cross-entropy": {"objective": "cross-entropy", "label_smoothing": 0.1},
    "rotation": {"objective": "rotation", "batch_size": 256, "learning_rate": 0.1},
}


def full_plan(data: Path) -> Plan:
    """Return what is measured on a GPU, with CIFAR-10 from the folder `data`."""
    train, test = (str(data / f"cifar10-{part}.tar.gz") for part in ("train", "test"))
    return Plan("cuda", train, test, RECIPE, seconds=600.0, vectors=131_072, compiled=True)


def options_of(plan: Plan, method: str) -> Options:
    """Return the options of one method's training."""
    own = OWN[method] if plan.device == "cuda" else {"objective": OWN[method]["objective"]}
    return {**plan.options, **own, "device": plan.device}


def measure_rate(plan: Plan, options: Options, out: Path, epochs: int = 3) -> tuple[float, int]:
    """Train for a few epochs with the product's own loop.

    Returns:
        Images/s, the median without the first epoch; and the number of images.
    """
    from training.dataset import load_data
    from training.devices import find_device, torch_settings
    from training.objectives.registry import find_objective
    from training.options import resolve_settings
    from training.pretrain import Trainer
    from training.settings import METRICS_FILE

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
    found: Figures = {"images_per_second": measure_rate(plan, options, out / "speed")[0]}
    if plan.compiled:
        options["compile"] = True
        found["compiled_images_per_second"] = measure_rate(plan, options, out / "speed-compiled")[0]
    return found


def tiled(plan: Plan) -> Figures:
    """Measure the peak memory (vectors and gradient included) and the time of the loss of many vectors."""
    import torch

    from training.objectives.contrastive import contrastive_loss

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


def learn(plan: Plan, method: str, out: Path, state: Figures, left: float) -> Figures | None:
    """Train one method for as long as the plan says, in as many calls as it takes; None while it is not finished.

    Args:
        plan: of the measurement.
        method: one of LEARNED.
        out: the measurement's folder.
        state: of the measurement; the training's length is kept there.
        left: seconds of this call.
    """
    started = time.monotonic()
    options = {**options_of(plan, method), "checkpoint_seconds": 20.0}
    lengths = state.setdefault("lengths", {})
    if method not in lengths:
        fast = state["pieces"].get("speed", {})
        compiled = fast.get("compiled_images_per_second", 0) > fast.get("images_per_second", 0)
        rate, images = measure_rate(plan, options | ({"compile": True} if compiled else {}), out / f"{method}-speed")
        lengths[method] = {"epochs": max(1, round(plan.seconds * rate / images)), "compile": compiled}
        save(out, state)
    options |= {"epochs": lengths[method]["epochs"]}
    options |= {"compile": True} if lengths[method]["compile"] else {}
    options |= {"test": plan.test} if plan.test else {}
    run = out / method
    command = [sys.executable, "-m", "training", plan.data, "--out", str(run), "--resume", "--json", *flags(options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, timeout=left - (time.monotonic() - started)
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        sys.exit(f"{method}: the training failed")
    answer = json.loads(done.stdout.splitlines()[-1])
    names = ("knn_accuracy", "linear_accuracy", "epochs", "train_seconds", "images_per_second", "loss")
    return {name: answer[name] for name in names}


def flags(options: Options) -> list[str]:
    """Return the options as the command takes them."""
    given = []
    for name, value in options.items():
        given += ["--" + name.replace("_", "-")] if value is True else ["--" + name.replace("_", "-"), str(value)]
    return given


def save(out: Path, state: Figures) -> None:
    """Keep what was found, whatever happens next."""
    temporary = out / f".{STATE_FILE}.part"
    temporary.write_text(json.dumps(state, indent=2))
    temporary.replace(out / STATE_FILE)


def work(plan: Plan, out: Path, pieces: Sequence[str], seconds: float) -> Figures:
    """Do what is left of the pieces within so many seconds, and return everything found so far."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / STATE_FILE
    state: Figures = json.loads(path.read_text()) if path.exists() else {"pieces": {}}
    end = time.monotonic() + seconds
    for piece in pieces:
        left = end - time.monotonic()
        if piece in state["pieces"] or left <= 0:
            continue
        if piece in LEARNED:
            found = learn(plan, piece, out, state, left)
        else:
            found = speed(plan, out) if piece == "speed" else tiled(plan)
        if found is None:
            print(f"{piece}: goes on in the next call", file=sys.stderr)
            continue
        state["pieces"][piece] = found
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
    """Return the targets of what was measured."""
    targets = []
    if "speed" in found:
        best = max(found["speed"].values())
        targets.append(Target("ResNet-18, two views, images/s", best, 20_000, True))
    if "tiled" in found:
        targets.append(Target("tiled loss of 131,072, GB", found["tiled"]["peak_bytes"] / 1e9, 0.5, False))
    for kind in ("knn_accuracy", "linear_accuracy"):
        if "supcon" in found:
            targets.append(Target(f"SupCon, {kind}", found["supcon"][kind], 0.95, True))
        if "supcon" in found and "cross-entropy" in found:
            points = 100 * (found["supcon"][kind] - found["cross-entropy"][kind])
            targets.append(Target(f"SupCon over cross-entropy, {kind}, points", points, 1.0, True))
    return targets


def main(arguments: Sequence[str]) -> None:
    """Measure what is left and report everything."""
    parser = argparse.ArgumentParser(description="Training on one GPU.")
    parser.add_argument("--out", type=Path, default=Path("gpu-train"), help="folder that keeps what was found")
    parser.add_argument("--minutes", type=float, default=9.5, help="of this call")
    parser.add_argument("--piece", choices=PIECES, help="only this one")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KINDRED_DATA", ROOT.parent / "shared/data")))
    parser.add_argument("--small", action="store_true", help="on a CPU, on a few digits: no figure means anything")
    given = parser.parse_args(arguments)

    import torch

    here = torch.cuda.is_available()
    pieces = (given.piece,) if given.piece else PIECES
    state: Figures = {"pieces": {}}
    if given.small or here:
        plan = SMALL if given.small else full_plan(given.data)
        state = work(plan, given.out, pieces, 60 * given.minutes)
    found = state["pieces"]
    name = "a CPU, small" if given.small else torch.cuda.get_device_name() if here else "no GPU here"
    figures = {**found, "gpu": name, "left": [piece for piece in PIECES if piece not in found]}
    targets = [] if given.small else targets_of(found)
    report(f"training on {name}", ("what", "measured"), rows_of(found), targets, figures, ["torch", "kindred"])


if __name__ == "__main__":
    main(sys.argv[1:])
