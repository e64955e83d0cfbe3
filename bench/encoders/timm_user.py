"""The script of somebody who knows timm: fine-tune with cross-entropy, and keep the features.

    python bench/encoders/timm_user.py TRAIN.tar MODEL.onnx ENCODER SIDE CPU_SECONDS SEED

Written as timm's own documentation has it, with what is known to suit a few thousand photos: crops and mirror images of
five sevenths of the side that the model is judged at, label smoothing, AdamW whose rate falls by 0.75 a block,
BatchNorm as it was, a cosine over the CPU seconds that it is given. Only how images are read and the model is built and
written is this project's, so that it starts alike and is judged alike.
"""

import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import timm.optim
import torch
from torch import nn
from torchvision.transforms import v2

from imagekin.training.data.images import load_images
from imagekin.training.export.named import adopt_named
from imagekin.training.models.named import load_named
from imagekin.training.models.names import find_name

BATCH = 64
RATE = 1e-3
WARMUP = 0.05
"""Share of the time in which the rate rises to its peak; then it falls along half a cosine."""

WRITING_SECONDS = 10.0
"""CPU seconds that are left for writing and checking the model."""


def main(train: str, out: str, name: str, side: str, cpu_seconds: str, seed: str) -> None:
    """Fine-tune and write the artifact."""
    torch.manual_seed(int(seed))
    encoder = load_named(find_name(name), image_size=int(side))
    judged = dataclasses.replace(encoder.images, size=int(side))
    kept = dataclasses.replace(judged, size=round(judged.size / judged.crop_fraction), crop_fraction=1.0)
    images = load_images(train, preprocess=kept.preprocess())
    labels = torch.from_numpy(images.labels)
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(round(int(side) * 5 / 7 / 32) * 32, scale=(0.35, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(encoder.images.normalisation.mean, encoder.images.normalisation.std),
        ]
    )
    model: Any = encoder.backbone.body.train()
    model.reset_classifier(len(images.class_names))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimiser = timm.optim.create_optimizer_v2(  # type: ignore[attr-defined]
        model, opt="adamw", lr=RATE, weight_decay=0.05, layer_decay=0.75
    )
    rates = [group["lr"] * group.get("lr_scale", 1.0) for group in optimiser.param_groups]
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    began = time.process_time()
    seconds = float(cpu_seconds) - began - WRITING_SECONDS
    steps, spent = 0, 0.0
    while spent < 1:
        order = torch.randperm(len(images))
        for rows in torch.split(order[: len(images) // BATCH * BATCH], BATCH):
            share = min(spent / WARMUP, 1.0) * (1 + math.cos(math.pi * spent)) / 2
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * share
            planes = torch.from_numpy(images.pixels[rows.numpy()]).permute(0, 3, 1, 2)
            loss = criterion(model(torch.stack([augment(each) for each in planes])), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            steps += 1
            spent = (time.process_time() - began) / seconds
            if spent >= 1:
                break
    print(f"{steps * BATCH / len(images):.1f} epochs", flush=True)
    model.reset_classifier(0)
    pixels = load_images(train, preprocess=judged.preprocess(), limit=1).pixels
    adopt_named(encoder, judged, lambda _: pixels[:64], Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
