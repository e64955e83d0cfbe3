"""Measure the fastest way to run a model on this machine, and keep the result beside the model.

Which number of inferences at one time, of threads for each and of images in a batch is best depends on the model and
on the processor; no rule knows it. The file holds for the machine and the model file that it was measured with, and is
passed over for any other.
"""

import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import InvalidArgumentError
from imagekin.machine import Device, cores, processor

BATCHES = {"cpu": (1, 2, 4, 8, 16, 32), "cuda": (8, 16, 32, 64)}
# While a GPU works on one batch, the next one can be copied there.
_GPU_SESSIONS = (1, 2, 3)
# A smaller batch that is this near the best rate is better: whoever waits for it waits less.
_NEAR = 0.97
_ENDING = ".tuning.json"


@dataclass(frozen=True, slots=True)
class Tuning:
    """The settings to run a model with.

    Attributes:
        sessions: inferences at one time.
        threads: CPU threads of each.
        batch: images of one inference at most.

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
class Measured:
    """One setting and how fast it was, in images a second."""

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
    """Return where a model will run and how it runs best there: as was measured on this machine, or by the cores.

    Raises:
        ImagekinError: the model cannot be opened.
    """
    where = device_of(device)
    if device == "auto" and where == "cuda" and Encoder.open(path, device=device).device == "cpu":
        device, where = "cpu", "cpu"  # CUDA's build of ONNX Runtime without a GPU
    return device, (load(path, where) if path.is_file() else None) or default(where, cores())


def open_for_files(path: Path, device: Device) -> Encoder:
    """Open a model to embed one batch of files after the other, each shared out between as many runs as pay.

    Raises:
        ImagekinError: the model cannot be opened.
    """
    device, tuned = of_machine(path, device)
    if device_of(device) == "cuda":
        return Encoder.open(path, device=device)  # a GPU is the faster the more images it gets at once
    return Encoder.open(path, device=device, threads=tuned.threads, sessions=tuned.sessions)


def candidates(device: str, usable: int) -> Iterator[tuple[int, int]]:
    """Yield the numbers of sessions and threads that are worth trying.

    On a CPU those that fill the cores, from one thread a session to one session; on a GPU some batches at one time.
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
) -> list[Measured]:
    """Measure a model with every number of sessions, threads and images worth trying; the best choice comes first.

    Args:
        path: the model artifact.
        device: `auto`, `cpu` or `cuda`.
        seconds: time for one figure; at least two inferences are timed in any case.
        rounds: figures of each, interleaved, of which the median counts.
        progress: told each figure of the first round.

    Raises:
        ImagekinError: the model cannot be opened.
    """
    rates: dict[Tuning, list[float]] = {}
    where = device_of(device)
    shapes = list(candidates(where, cores()))
    opened = [(shape, Encoder.open(path, device=device, sessions=shape[0], threads=shape[1])) for shape in shapes]
    for number in range(rounds):
        for (sessions, threads), encoder in opened:
            for batch in BATCHES[where]:
                tuning = Tuning(sessions, threads, batch)
                rates.setdefault(tuning, []).append(rate(encoder, sessions, batch, seconds))
                if number == 0:
                    progress(f"{sessions} sessions × {threads} threads, batches of {batch}: {rates[tuning][0]:.1f}/s")
    found = [Measured(tuning, statistics.median(values)) for tuning, values in rates.items()]
    best = choose(found)
    return [best, *(each for each in found if each is not best)]


def choose(found: list[Measured]) -> Measured:
    """Return the smallest batch that is near the best rate, and of those with this batch the fastest."""
    enough = _NEAR * max(each.rate for each in found)
    return min((each for each in found if each.rate >= enough), key=lambda each: (each.tuning.batch, -each.rate))


def rate(encoder: Encoder, sessions: int, batch: int, seconds: float) -> float:
    """Return the images a second of an encoder that as many threads keep busy as it has sessions."""
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


def tuning_path(model: Path) -> Path:
    """Return where a model's tuning is kept."""
    return model.with_name(model.name + _ENDING)


def save(model: Path, device: str, measured: Measured) -> Path:
    """Write a model's tuning beside it and return the file's path.

    Raises:
        OSError: it cannot be written.
    """
    path = tuning_path(model)
    entry = {**_here(model, device), **asdict(measured.tuning), "images_per_second": round(measured.rate, 2)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def load(model: Path, device: str) -> Tuning | None:
    """Return a model's tuning; None where there is none, or it was measured elsewhere or with another file."""
    try:
        entry = json.loads(tuning_path(model).read_text(encoding="utf-8"))
        here = _here(model, device)
        if not isinstance(entry, dict) or any(entry.get(name) != value for name, value in here.items()):
            return None
        return Tuning(entry["sessions"], entry["threads"], entry["batch"])
    except (OSError, ValueError, KeyError, InvalidArgumentError):
        return None


def _here(model: Path, device: str) -> dict[str, str | int]:
    """Return the identity of model and machine that a tuning is valid for."""
    return {"model_bytes": model.stat().st_size, "device": device, "processor": processor(), "cores": cores()}
