"""Where a run trains: which device, how many threads, which number format."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from encoder.errors import InvalidArgumentError
from training.settings import TrainSettings


def has_native_bfloat16(device: torch.device) -> bool:
    """Say whether the device multiplies bfloat16 in hardware, so that it is faster than float32 and not slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    read = getattr(torch.cpu, "get_capabilities", None)  # younger than the oldest torch that is supported
    capabilities = read() if read is not None else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


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


@contextmanager
def torch_settings(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """Give torch the run's thread count, and leave its generators and thread count as they were."""
    threads = torch.get_num_threads()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(threads)
