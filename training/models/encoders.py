"""The encoders: images in, features out, by name.

`resnet18` and `resnet50` (He et al. 2016) have torchvision's parameter names, so that training can start from its
weight files. `tiny` is for quick work on a CPU: a digit or a 64-pixel photo does not need eleven million weights.
`strokes` is for characters and drawings.

The input of an encoder is normalised pixels; its mean and standard deviation are kept beside it as a `Normalisation`,
which export writes into the graph.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from imagekin.errors import InvalidArgumentError

Stem = Literal["small", "large"]

_SMALL_IMAGE = 64
"""Sides up to this many pixels get the small stem: a 7×7 stride-2 convolution and a pool would leave little.."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and deviation of each channel, of pixels scaled to [0, 1]: normalised = (pixel/255 − mean) / std."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET_NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Normalisation that torchvision's weights were trained with."""


class Backbone(nn.Module):
    """Base of the encoders.

    Attributes:
        feature_dim: D, the number of features.
        frozen: modules that stay in evaluation mode, such as BatchNorms whose statistics are to stay.
    """

    feature_dim: int
    frozen: tuple[nn.Module, ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float [N, 3, H, W], to features, float [N, D] (not of unit length)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, except for what is frozen, or to evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


def normalise(pixels: Tensor, normalisation: Normalisation) -> Tensor:
    """Map uint8 [N, 3, H, W] to normalised float32 [N, 3, H, W], as the exported graph does."""
    mean = torch.tensor(normalisation.mean, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(normalisation.std, device=pixels.device).view(1, 3, 1, 1)
    return (pixels.float() / 255.0 - mean) / std


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; the block of ResNet-18."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, channels, H/stride, W/stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: Tensor = self.relu(out.add_(shortcut))
        return result


class _Bottleneck(nn.Module):
    """1×1, 3×3 (which carries the stride, as torchvision has it), 1×1, and a shortcut; the block of ResNet-50."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, 4·channels, H/stride, W/stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        result: Tensor = self.relu(out.add_(shortcut))
        return result


class ResNet(Backbone):
    """A ResNet without its classifier.

    The large stem is ImageNet's (7×7 stride 2, 3×3 max pool stride 2); the small one is a 3×3 convolution of stride 1,
    as SimCLR (Chen et al. 2020, B.9) and SupCon use on CIFAR-10.
    """

    def __init__(self, block: type[_BasicBlock] | type[_Bottleneck], depths: tuple[int, ...], stem: Stem) -> None:
        super().__init__()
        small = stem == "small"
        self.conv1 = nn.Conv2d(3, 64, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        in_channels = 64
        for index, depth in enumerate(depths):
            channels = 64 * 2**index
            blocks: list[nn.Module] = []
            for position in range(depth):
                blocks.append(block(in_channels, channels, 2 if index > 0 and position == 0 else 1))
                in_channels = channels * block.expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.feature_dim = in_channels
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float [N, 3, H, W], to features, float [N, D]."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
        return x.mean((2, 3))


class _Tiny(Backbone):
    """A small residual network: a stem, then stages that halve the side and widen the channels; 0.7 million weights.

    Stages stop halving at a side of 4, so that 16-pixel digits keep some spatial detail.
    """

    def __init__(self, image_size: int, widths: tuple[int, ...] = (32, 64, 128, 128)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 1 if image_size <= 24 else 2, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        side = image_size if image_size <= 24 else image_size // 2
        blocks: list[nn.Module] = []
        in_channels = widths[0]
        for channels in widths[1:]:
            stride = 2 if side >= 8 else 1
            blocks.append(_BasicBlock(in_channels, channels, stride))
            side //= stride
            in_channels = channels
        self.blocks = nn.Sequential(*blocks)
        self.feature_dim = in_channels
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float [N, 3, H, W], to features, float [N, D]."""
        x: Tensor = self.blocks(self.stem(images))
        return x.mean((2, 3))


class _Strokes(Backbone):
    """A small residual network for drawings and characters; its features keep their places, 4×4×256 at most.

    Characters differ by where their strokes lie, so nothing is averaged over positions; colour carries no information,
    so the three channels become one at the input. 1.2 million weights.
    """

    WIDTHS = (64, 128, 256)
    SIDE = 4

    def __init__(self, image_size: int) -> None:
        super().__init__()
        in_channels = self.WIDTHS[0]
        self.stem = nn.Sequential(
            nn.Conv2d(1, in_channels, 3, 2, 1, bias=False), nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)
        )
        blocks: list[nn.Module] = []
        side = (image_size + 1) // 2
        for index, channels in enumerate(self.WIDTHS):
            stride = 2 if index else 1
            blocks.append(_BasicBlock(in_channels, channels, stride))
            side = (side + stride - 1) // stride
            in_channels = channels
        self.blocks = nn.Sequential(*blocks)
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(self.SIDE) if side > self.SIDE else nn.Identity()
        # Keep torch's own initialisation: its weights are smaller than He's, so the same rate changes them more.
        self.feature_dim = in_channels * min(side, self.SIDE) ** 2

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float [N, 3, H, W], to features, float [N, D]."""
        x: Tensor = self.pool(self.blocks(self.stem(images.mean(1, keepdim=True))))
        return x.flatten(1)


_BUILDERS: dict[str, Callable[[int, Stem], Backbone]] = {
    "tiny": lambda size, stem: _Tiny(size),
    "resnet18": lambda size, stem: ResNet(_BasicBlock, (2, 2, 2, 2), stem),
    "resnet50": lambda size, stem: ResNet(_Bottleneck, (3, 4, 6, 3), stem),
    "strokes": lambda size, stem: _Strokes(size),
}


def encoder_names() -> tuple[str, ...]:
    """Return the names that `build_encoder` accepts."""
    return tuple(_BUILDERS)


def build_encoder(name: str, image_size: int, *, stem: Stem | None = None) -> Backbone:
    """Build an encoder with random weights (drawn from torch's global generator).

    Args:
        name: one of `encoder_names()`.
        image_size: side of its input in pixels; decides the ResNets' stem where `stem` does not.
        stem: `small` or `large`; None takes the small one for sides up to 64.

    Raises:
        InvalidArgumentError: there is no encoder of that name.
    """
    if name not in _BUILDERS:
        names = ", ".join(_BUILDERS)
        raise InvalidArgumentError(f"there is no encoder {name!r}; choose one of: {names}", field="encoder")
    return _BUILDERS[name](image_size, stem or ("small" if image_size <= _SMALL_IMAGE else "large"))


def stem_of(state: Mapping[str, Tensor]) -> Stem | None:
    """Return the stem of a ResNet's state dict, None when it is no ResNet's."""
    weight = state.get("conv1.weight")
    if weight is None or weight.ndim != 4:
        return None
    return "small" if weight.shape[-1] == 3 else "large"


def load_state(encoder: Backbone, state: Mapping[str, Tensor]) -> None:
    """Load weights into `encoder`; a classifier (`fc.*`) is ignored, anything else that does not fit is an error.

    Raises:
        InvalidArgumentError: names or shapes differ, so the weights are another encoder's.
    """
    kept = {name: value for name, value in state.items() if not name.startswith("fc.")}
    own = encoder.state_dict()
    # Old checkpoints lack BatchNorm's counters, which only matter for a cumulative average.
    missing = [name for name in own if name not in kept and not name.endswith("num_batches_tracked")]
    wrong = [name for name, value in kept.items() if name not in own or own[name].shape != value.shape]
    if missing or wrong:
        first = (missing + wrong)[0]
        raise InvalidArgumentError(f"the weights do not fit this encoder (first difference: {first})", field="weights")
    encoder.load_state_dict(kept, strict=False)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


def _initialise(module: nn.Module) -> None:
    """Initialise as He et al. do, and as torchvision's ResNets."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
