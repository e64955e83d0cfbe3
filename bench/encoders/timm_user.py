"""The script of somebody who knows timm: fine-tune with cross-entropy, and keep the features.

    python bench/encoders/timm_user.py TRAIN.tar MODEL.onnx ENCODER EPOCHS SEED

Written as in timm's own examples: random resized crops and mirror images at the model's size, label smoothing, AdamW
with one rate, a cosine, everything trained. Only how the model is built and written is this project's, so that it
starts from the same weights and is judged as the others are.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torchvision.transforms import v2

from imagekin.training.data.images import load_images
from imagekin.training.export.named import adopt_named
from imagekin.training.models.named import load_named
from imagekin.training.models.names import find_name

BATCH = 64


def main(train: str, out: str, name: str, epochs: str, seed: str) -> None:
    """Fine-tune and write the artifact."""
    torch.manual_seed(int(seed))
    encoder = load_named(find_name(name))
    images = load_images(train, preprocess=encoder.images.preprocess())
    labels = torch.from_numpy(images.labels)
    side, normalisation = encoder.images.size, encoder.images.normalisation
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(side, scale=(0.35, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(normalisation.mean, normalisation.std),
        ]
    )
    model = nn.Sequential(encoder.backbone, nn.Linear(encoder.backbone.feature_dim, len(images.class_names))).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    steps = int(epochs) * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for _ in range(int(epochs)):
        order = torch.randperm(len(images))
        for step in range(len(images) // BATCH):
            rows = order[step * BATCH : (step + 1) * BATCH]
            planes = torch.from_numpy(images.pixels[rows.numpy()]).permute(0, 3, 1, 2)
            batch = torch.stack([augment(each) for each in planes])
            loss = criterion(model(batch), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    adopt_named(encoder, encoder.images, lambda _: images.pixels[:64], Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
