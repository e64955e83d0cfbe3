"""Choose the device, the number of threads and the number format of a run."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.machine import freed_memory_kept
from imagekin.training.settings import TrainSettings


def has_native_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 in hardware, so that it is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    read = getattr(torch.cpu, "get_capabilities", None)  # missing in the oldest torch that is supported
    capabilities = read() if read is not None else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def gains_by_bfloat16(encoder: nn.Module, device: torch.device) -> bool:
    """Return whether an encoder's forward pass is faster in bfloat16 than in float32 on the device.

    On a CPU depthwise convolutions are not: EfficientNet-Lite0 takes as long in either.
    """
    if device.type == "cpu" and any(_is_depthwise(module) for module in encoder.modules()):
        return False
    return has_native_bfloat16(device)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels


def find_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the first GPU where there is one.

    Raises:
        InvalidArgumentError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidArgumentError(f"there is no device {name!r}; use auto, cpu or cuda", field="device") from error
    if device.type not in ("cpu", "cuda"):
        raise InvalidArgumentError(f"there is no device {name!r}; use auto, cpu or cuda", field="device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidArgumentError(f"torch finds no {name} here; use --device cpu", field="device")
    return device


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device` without waiting for the GPU's pending work, as a plain copy would."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


@contextmanager
def torch_settings(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """Set torch's threads, cuDNN's autotuning and the keeping of memory for a run; restore them and the generators.

    Convolutions in float32 use TF32 on a GPU (torch's default); matrix products do not, to keep the loss exact.
    """
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    # Every step has the same shapes, so searching for the fastest algorithm pays.
    torch.backends.cudnn.benchmark = device.type == "cuda"
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        memory = freed_memory_kept() if device.type == "cpu" else nullcontext()
        with memory, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def failures_explained(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """Convert torch's errors about too weak a device or compiler to one line.

    Raises:
        FailedPreconditionError: the device has too little memory, or the encoder cannot be compiled.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise FailedPreconditionError(
            f"{device} has too little memory for --batch-size {settings.batch_size}; lower it, or use --chunk-size"
        ) from error
    except RuntimeError as error:
        if not settings.compile or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FailedPreconditionError(f"torch cannot compile here ({reason}); leave out --compile") from error
