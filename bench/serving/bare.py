"""The bare model for `bench/serve.py`: decoding and ONNX Runtime in a tight loop, and the photos for it."""

import heapq
import io
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagekin.encoder.decoding import decode
from imagekin.encoder.metadata import Preprocess
from imagekin.encoder.runtime import tuning
from imagekin.encoder.runtime.session import Encoder
from imagekin.machine import cores


def tight_loop(model: Path, files: list[bytes], seconds: float, *, scaled: bool = True) -> tuple[float, float]:
    """Return images a second and CPU seconds an image of decoding and ONNX Runtime alone, on all cores."""
    tuned = tuning.load(model, "cpu") or tuning.default("cpu", cores())
    encoder = Encoder.open(model, device="cpu", threads=tuned.threads, sessions=tuned.sessions)
    rule = encoder.metadata.preprocess
    read = decode.load_pixels if scaled else plain_pixels
    counts = [0] * cores()

    def run(number: int) -> None:
        while time.perf_counter() < ends:
            at = (number + counts[number]) % len(files)
            batch = [files[(at + step) % len(files)] for step in range(min(tuned.batch, 16))]
            encoder.run(np.stack([read(data, rule) for data in batch]))
            counts[number] += len(batch)

    began, cpu = time.perf_counter(), time.process_time()
    ends = began + seconds
    threads = [threading.Thread(target=run, args=(number,)) for number in range(cores())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began), (time.process_time() - cpu) / sum(counts)


def ideal_p99(load: float, servers: int, count: int = 200_000) -> float:
    """Return the 99th percentile of a queue's times to answer, in service times: the least that any server can reach.

    Poisson arrivals, one queue, first come, first served, every service equally long, nothing lost between two.

    Args:
        load: share of the servers' time that is needed.
        servers: how many.
        count: arrivals to simulate.
    """
    gaps = np.random.default_rng(0).exponential(1 / (load * servers), count)
    free, times = [0.0] * servers, []
    for now in np.cumsum(gaps).tolist():
        done = max(now, heapq.heappop(free)) + 1
        heapq.heappush(free, done)
        times.append(done - now)
    return float(np.quantile(times, 0.99))


def plain_pixels(data: bytes, rule: Preprocess) -> NDArray[np.uint8]:
    """Return the pixels of a photo as Pillow decodes them in full."""
    return decode.fit(Image.open(io.BytesIO(data)).convert("RGB"), rule)


def twelve_megapixels(tiles: list[bytes], quality: int, noise: float = 0) -> bytes:
    """Return a JPEG file of 4000×3000, real photos enlarged to a quarter of it each, with noise of this deviation."""
    whole = Image.new("RGB", (4000, 3000))
    for number, data in enumerate(tiles):
        tile = Image.open(io.BytesIO(data)).convert("RGB").resize((2000, 1500), Image.Resampling.BICUBIC)
        whole.paste(tile, (2000 * (number % 2), 1500 * (number // 2)))
    if noise:
        grain = np.random.default_rng(0).normal(0, noise, (3000, 4000, 1)).astype(np.float32)
        whole = Image.fromarray((np.asarray(whole, np.float32) + grain).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    whole.save(file, "JPEG", quality=quality)
    return file.getvalue()


def read_photos(path: Path, count: int) -> list[bytes]:
    """Return `count` photos of an archive, evenly spaced."""
    with tarfile.open(path) as archive:
        chosen = _chosen(archive, count)
        return [file.read() for member in chosen if (file := archive.extractfile(member)) is not None]


def read_classes(path: Path, count: int) -> list[str]:
    """Return the folders of the photos that `read_photos` returns."""
    with tarfile.open(path) as archive:
        return [str(Path(member.name).parent) for member in _chosen(archive, count)]


def _chosen(archive: tarfile.TarFile, count: int) -> list[tarfile.TarInfo]:
    members = [member for member in archive if member.isfile() and member.name.endswith((".jpg", ".jpeg"))]
    return members[:: max(1, len(members) // count)][:count] if count else []
