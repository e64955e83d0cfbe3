"""Measure two-view SupCon pretraining beside the reference recipe, and views beside torchvision v2 and kornia.

    python -m venv peer && peer/bin/pip install torch torchvision kornia '.[cpu,train]'
    peer/bin/python bench/pretrain.py [--peer-python PYTHON] [--rounds N] [--cores N]

The reference's way: PIL images through torchvision transforms (RandomResizedCrop, flip, ColorJitter, grayscale) twice
each in DataLoader workers, float32, default memory layout, SGD with momentum. Ours:
`imagekin.training.loop.trainer.Trainer` as `imagekin train` runs it, with SGD too. Both have the same encoder, batch,
32-pixel images, loss and cores; each measurement is a process of its own, so that neither inherits the other's threads,
and they alternate. The peer's interpreter needs torchvision and kornia; run from it, both sides have the same torch,
which is fairest.

Expected: ≥ 2.5× the images/s with ResNet-18, ≥ 4× with the tiny encoder, on 2 cores. Some five minutes.
"""

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import Target, interleave, ratio, report

ROOT = Path(__file__).resolve().parents[1]
SIZE, BATCH, CLASSES = 32, 256, 10
STEPS = {"tiny": 12, "resnet18": 2}
WARMUP = {"tiny": 5, "resnet18": 1}
"""Steps that are not counted: in the first ones the workers are ahead, and cost nothing."""
BOUNDS = {"tiny": 4.0, "resnet18": 2.5}
VIEW_KINDS = ("ours", "torchvision v2", "kornia")
WORKERS = 2


def noise(count: int):  # type: ignore[no-untyped-def]
    """Return smooth random images, uint8 [count, 32, 32, 3]; their content does not affect any cost."""
    import numpy as np

    coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def timed(step: Callable[[], object], steps: int, warmup: int = 1) -> float:
    """Return the images/s of a step over a batch."""
    for _ in range(warmup):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * BATCH / (time.perf_counter() - started)


def ours(encoder: str) -> float:
    """Train as `imagekin train` does; return images/s."""
    import numpy as np
    import torch

    from imagekin.encoder.metadata import Preprocess
    from imagekin.training.data.images import ImageSet
    from imagekin.training.loop.devices import torch_settings
    from imagekin.training.loop.trainer import Trainer
    from imagekin.training.objectives.registry import find_objective
    from imagekin.training.settings import TrainSettings

    count = BATCH * 4
    labels = np.arange(count) % CLASSES
    names = tuple(str(row) for row in range(count))
    images = ImageSet(noise(count), labels, names[:CLASSES], names, "noise", Preprocess(SIZE, SIZE))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(
            data="noise",
            out=Path(folder),
            encoder=encoder,
            image_size=SIZE,
            batch_size=BATCH,
            views="supcon",
            optimiser="sgd",
            learning_rate=0.05,
            weight_decay=1e-4,
        )
        device = torch.device("cpu")
        with torch_settings(settings, device):
            trainer = Trainer(settings, images, device, find_objective("supcon"), None)
            trainer.encoder.train()
            rows = torch.arange(BATCH)
            return timed(lambda: float(trainer.step(rows, 0.05)), STEPS[encoder], WARMUP[encoder])


def reference(encoder: str) -> float:
    """Train by the reference recipe; return images/s."""
    import torch
    from PIL import Image
    from torch.nn import functional
    from torchvision import transforms

    from imagekin.training.models.encoders import build_encoder

    pixels = noise(BATCH * 4)
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=(0.2, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ]
    )
    steps, warmup = STEPS[encoder], WARMUP[encoder]

    class TwoViews(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return (steps + warmup + 2 * WORKERS) * BATCH

        def __getitem__(self, row: int):  # type: ignore[no-untyped-def]
            image = Image.fromarray(pixels[row % len(pixels)])
            return [augment(image), augment(image)], row % CLASSES

    torch.manual_seed(0)
    network = build_encoder(encoder, SIZE)
    head = torch.nn.Sequential(
        torch.nn.Linear(network.feature_dim, network.feature_dim),
        torch.nn.ReLU(inplace=True),
        torch.nn.Linear(network.feature_dim, 128),
    )
    model = torch.nn.Sequential(network, head)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    loader = torch.utils.data.DataLoader(TwoViews(), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
    batches = iter(loader)

    def step() -> None:
        (first, second), labels = next(batches)
        vectors = functional.normalize(model(torch.cat([first, second])), dim=1)
        loss = supcon(vectors.view(2, BATCH, -1).transpose(0, 1), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()

    return timed(step, steps, warmup)


def supcon(features, labels, temperature: float = 0.1):  # type: ignore[no-untyped-def]
    """Return SupCon's loss as its reference code computes it, in float32; features [B, views, P]."""
    import torch

    count, views = features.shape[:2]
    mask = torch.eq(labels.view(-1, 1), labels.view(1, -1)).float().repeat(views, views)
    contrast = torch.cat(torch.unbind(features, dim=1), dim=0)
    logits = contrast @ contrast.T / temperature
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    others = torch.scatter(torch.ones_like(mask), 1, torch.arange(count * views).view(-1, 1), 0)
    mask = mask * others
    log_probability = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
    return -((mask * log_probability).sum(1) / mask.sum(1)).mean()


def views(kind: str) -> float:
    """Draw one view of every image of a batch, in this process; return views/s."""
    import torch

    images = torch.from_numpy(noise(BATCH)).permute(0, 3, 1, 2).contiguous()
    if kind == "ours":
        from imagekin.training.models.encoders import Normalisation
        from imagekin.training.views.views import Views

        draw = Views.named("supcon", SIZE, Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
        draws = torch.Generator().manual_seed(0)
        return timed(lambda: draw(images, draws), 40, 3)
    if kind == "torchvision v2":
        from torchvision.transforms import v2

        one = v2.Compose(
            [
                v2.RandomResizedCrop(SIZE, scale=(0.2, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                v2.RandomGrayscale(p=0.2),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
            ]
        )
        # Given a batch it draws once for all of it: for views that differ it has to be called image by image.
        return timed(lambda: torch.stack([one(image) for image in images]), 2)
    from kornia import augmentation

    batched = augmentation.AugmentationSequential(
        augmentation.RandomResizedCrop((SIZE, SIZE), scale=(0.2, 1.0)),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
        augmentation.Normalize(torch.full((3,), 0.5), torch.full((3,), 0.25)),
    )
    return timed(lambda: batched(images.float() / 255), 10, 2)


MEASURES: dict[str, Callable[[str], float]] = {"ours": ours, "reference": reference, "views": views}


def measure(python: str, kind: str, what: str, cores: int) -> float:
    """Run one measurement in its own process."""
    environment = os.environ | {"OMP_NUM_THREADS": str(cores), "PYTHONPATH": str(ROOT)}
    command = [python, str(Path(__file__).resolve()), "--measure", kind, what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} {what} failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with torchvision and kornia")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--encoders", nargs="*", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, what = options.measure
        if "ours" in options.measure:
            # As `imagekin train` has it: what says how torch's threads wait is read when torch is loaded.
            importlib.import_module("training")
        print(MEASURES[kind](what))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.cores]))
    cores, peer = options.cores, options.peer_python
    rows, targets = [], []
    figures: dict[str, object] = {"batch": BATCH, "size": SIZE, "cores": cores, "rounds": options.rounds}
    for name in options.encoders:
        speeds = interleave(
            {
                "reference": lambda name=name: measure(peer, "reference", name, cores),  # type: ignore[misc]
                "ours": lambda name=name: measure(sys.executable, "ours", name, cores),  # type: ignore[misc]
            },
            options.rounds,
        )
        factor = ratio(speeds["ours"], speeds["reference"])
        for kind, values in speeds.items():
            shown = f"{factor:.2f}×" if kind == "ours" else "1"
            rows.append((f"train {name}, {kind}", f"{statistics.median(values):,.0f} images/s", shown))
        targets.append(Target(f"two-view SupCon, {name}, ours/reference", factor, BOUNDS[name], True))
        figures[name] = speeds
    speeds = interleave(
        {
            kind: lambda kind=kind: measure(sys.executable if kind == "ours" else peer, "views", kind, cores)  # type: ignore[misc]
            for kind in VIEW_KINDS
        },
        options.rounds,
    )
    for kind, values in speeds.items():
        factor = ratio(speeds["ours"], values)
        rows.append((f"views alone, {kind}", f"{statistics.median(values):,.0f} views/s", f"ours {factor:.1f}×"))
    figures["views"] = speeds
    title = f"two-view SupCon of {BATCH} images of {SIZE} pixels on {cores} cores"
    packages = ["torch", "torchvision", "kornia", "pillow"]
    report(title, ("what", "speed", "ratio"), rows, targets, figures, packages)


if __name__ == "__main__":
    main()
