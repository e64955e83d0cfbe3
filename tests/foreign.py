"""Image encoders as other people's tools export them, small."""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Convolutions, BatchNorm and a pooled vector, as torchvision's and timm's models end."""

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, dim, 3), nn.SiLU()
        )

    def forward(self, image: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, D]."""
        return self.body(image).mean((2, 3))  # type: ignore[no-any-return]


class Relu6(nn.Module):
    """Convolutions that ReLU6 cuts off far below their greatest values, as MobileNets have them."""

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2), nn.ReLU6(), nn.Conv2d(16, dim, 3), nn.ReLU6(), nn.Conv2d(dim, dim, 3), nn.ReLU6()
        )

    def forward(self, image: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, D]."""
        return self.body(image).mean((2, 3))  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """Max-pooling behind the first convolution, as ResNets have it."""

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(16, dim, 3), nn.ReLU()
        )

    def forward(self, image: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, D]."""
        return self.body(image).mean((2, 3))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """Patches, a class token and attention, as DINOv2 and CLIP towers have them."""

    def __init__(self, side: int = 32, dim: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 8, 8)
        self.first = nn.Parameter(torch.randn(1, 1, dim))
        self.places = nn.Parameter(torch.randn(1, (side // 8) ** 2 + 1, dim) / 10)
        self.mix = nn.Linear(dim, 3 * dim)
        self.norm = nn.LayerNorm(dim)
        self.last = nn.Linear(dim, dim)

    def forward(self, image: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, T, D]."""
        patches = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(image.shape[0], -1, -1), patches], 1) + self.places
        query, key, value = self.mix(self.norm(tokens)).chunk(3, dim=-1)
        mixed = torch.softmax(query @ key.transpose(1, 2) / 5, dim=-1) @ value
        return tokens + self.last(torch.nn.functional.gelu(mixed))  # type: ignore[no-any-return]


def export(
    module: nn.Module, path: Path, *, side: int = 32, dynamic: bool = True, external: bool = False, opset: int = 18
) -> Path:
    """Export a module as its users would, with random weights, and return the path."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.randn(2 if dynamic else 1, 3, side, side),),
            path,
            dynamo=True,
            dynamic_shapes={"image": {0: torch.export.Dim("N")}} if dynamic else None,
            external_data=external,
            opset_version=opset,
            verbose=False,
        )
    logger.setLevel(level)
    return path
