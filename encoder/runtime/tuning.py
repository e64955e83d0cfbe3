"""Measure the fastest way to run a model on this machine, and keep the result beside the model.

The best number of concurrent inferences, of threads for each and of images in a batch depends on the model and on the
processor, and has to be measured. The result is valid for the machine and the model file that it was measured with, and
ignored for any other.
"""

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from imagekin import files
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import InvalidArgumentError
from imagekin.machine import Device, cores, processor

BATCHES = {"cpu": (1, 2, 4, 8, 16, 32), "cuda": (8, 16, 32, 64)}
# While a GPU runs one batch, the next one can be copied to it.
_GPU_SESSIONS = (1, 2, 3)
# A smaller batch is preferred if it reaches this share of the best rate, because it has a lower latency.
_NEAR = 0.97
_ENDING = ".tuning.json"


@dataclass(frozen=True, slots=True)
class Tuning:
    """The settings to run a model with.

    Attributes:
        sessions: number of concurrent inferences.
        threads: CPU threads of each.
        batch: most images of an inference.

    Raises:
        InvalidArgumentError: a number is not positive.
    """

    sessions: int
    threads: int
    batch: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 4096:
                raise InvalidArgumentError(f"{name} must be 1 to 4096", field=name)


@dataclass(frozen=True, slots=True)
class Measurement:
    """The measured rate of one setting, in images per second."""

    tuning: Tuning
    rate: float


def default(device: str, usable: int) -> Tuning:
    """Return the settings for a machine without measurements: up to four threads an inference, all cores in use."""
    if device == "cuda":
        return Tuning(2, 1, 64)
    threads = 1 if usable <= 4 else 4
    return Tuning(max(1, usable // threads), threads, 32)


def device_of(device: Device) -> str:
    """Resolve the device `auto` for this machine, before a model is opened."""
    if device != "auto":
        return device
    return "cuda" if "CUDAExecutionProvider" in ort.get_available_providers() else "cpu"


def of_machine(path: Path, device: Device) -> tuple[Device, Tuning]:
    """Return the device and the settings for a model: as measured on this machine, or else the default.

    Raises:
        ImagekinError: the model cannot be opened.
    """
    where = device_of(device)
    if device == "auto" and where == "cuda" and Encoder.open(path, device=device).device == "cpu":
        device, where = "cpu", "cpu"  # ONNX Runtime was built for CUDA, but there is no GPU
    return device, (load(path, where) if path.is_file() else None) or default(where, cores())


def open_for_files(path: Path, device: Device) -> Encoder:
    """Open a model to embed batches of files one after another, each divided among concurrent inferences if that pays.

    Raises:
        ImagekinError: the model cannot be opened.
    """
    device, tuned = of_machine(path, device)
    if device_of(device) == "cuda":
        return Encoder.open(path, device=device)  # a GPU is fastest with undivided batches
    return Encoder.open(path, device=device, threads=tuned.threads, sessions=tuned.sessions)


def _candidates(device: str, usable: int) -> Iterator[tuple[int, int]]:
    """Yield the numbers of sessions and threads to try.

    On a CPU, these are the combinations that use all cores; on a GPU, a few concurrent batches.
    """
    if device == "cuda":
        yield from ((sessions, 1) for sessions in _GPU_SESSIONS)
        return
    threads = 1
    while threads < usable:
        yield usable // threads, threads
        threads *= 2
    yield 1, usable


def measure(
    path: Path,
    *,
    device: Device = "auto",
    seconds: float = 0.4,
    rounds: int = 3,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Measurement]:
    """Measure a model with all combinations of sessions, threads and batch size to try; the best one comes first.

    Args:
        path: the model artifact.
        device: `auto`, `cpu` or `cuda`.
        seconds: time of a measurement, which takes at least two inferences.
        rounds: interleaved measurements of each combination, of which the median is used.
        progress: called with each measurement of the first round.

    Raises:
        ImagekinError: the model cannot be opened.
    """
    rates: dict[Tuning, list[float]] = {}
    where = device_of(device)
    shapes = list(_candidates(where, cores()))
    opened = [(shape, Encoder.open(path, device=device, sessions=shape[0], threads=shape[1])) for shape in shapes]
    for number in range(rounds):
        for (sessions, threads), encoder in opened:
            for batch in BATCHES[where]:
                tuning = Tuning(sessions, threads, batch)
                rates.setdefault(tuning, []).append(_measure_rate(encoder, sessions, batch, seconds))
                if number == 0:
                    progress(f"{sessions} sessions × {threads} threads, batches of {batch}: {rates[tuning][0]:.1f}/s")
    found = [Measurement(tuning, statistics.median(values)) for tuning, values in rates.items()]
    best = _choose(found)
    return [best, *(each for each in found if each is not best)]


def _choose(found: list[Measurement]) -> Measurement:
    """Return the fastest of the settings with the smallest batch that is near the best rate."""
    enough = _NEAR * max(each.rate for each in found)
    return min((each for each in found if each.rate >= enough), key=lambda each: (each.tuning.batch, -each.rate))


def _measure_rate(encoder: Encoder, sessions: int, batch: int, seconds: float) -> float:
    """Measure the images per second of an encoder, used by as many threads as it has sessions."""
    side = encoder.metadata.preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side.height, side.width, 3), np.uint8)
    encoder.run(pixels)
    counts = [0] * sessions
    began = time.perf_counter()

    def run(number: int) -> None:
        while counts[number] < 2 or time.perf_counter() - began < seconds:
            encoder.run(pixels)
            counts[number] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) * batch / (time.perf_counter() - began)


def _tuning_path(model: Path) -> Path:
    """Return the path of a model's tuning."""
    return model.with_name(model.name + _ENDING)


def save(model: Path, device: str, measured: Measurement) -> Path:
    """Write a model's tuning beside it and return the file's path.

    Raises:
        OSError: it cannot be written.
    """
    path = _tuning_path(model)
    entry = {**_identity(model, device), **asdict(measured.tuning), "images_per_second": round(measured.rate, 2)}
    files.write_text(path, json.dumps(entry, indent=1) + "\n")
    return path


def load(model: Path, device: str) -> Tuning | None:
    """Read a model's tuning; None if there is none, or if it was measured on another machine or with another file."""
    try:
        entry = json.loads(_tuning_path(model).read_text(encoding="utf-8"))
        here = _identity(model, device)
        if not isinstance(entry, dict) or any(entry.get(name) != value for name, value in here.items()):
            return None
        return Tuning(entry["sessions"], entry["threads"], entry["batch"])
    except (OSError, ValueError, KeyError, InvalidArgumentError):
        return None


def _identity(model: Path, device: str) -> dict[str, str | int]:
    """Return the identity of model and machine that a tuning is valid for."""
    return {"model_bytes": model.stat().st_size, "device": device, "processor": processor(), "cores": cores()}
