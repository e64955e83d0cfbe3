"""Measure `imagekin index` beside decoding and the model alone, and beside a plain DataLoader script.

    python -m bench.batch_index --model MODEL.onnx TAR… [--rounds 3]
    python -m bench.batch_index --memory [--records 10000,1000000]

Every contender is a process of its own on all cores, run in turn; the rate is images over the time from the first image
read to the last one stored, so that starting Python and loading the model count for nobody. The ceilings decode and
embed what lies in memory already: no archive, hash or store. One decodes in as many threads as there are cores and
embeds batches of 64 on all cores, the other has a thread a core that decodes and embeds 32 images at a time by itself;
the better one counts. The DataLoader script reads the archive, decodes with Pillow in worker processes, embeds with the
same session and keeps the embeddings in a list: it stores nothing, and starts anew when it is killed. clip-retrieval's
way is its own reader, runner and writer (`pip install --no-deps clip-retrieval webdataset braceexpand`) around the same
session and the same decoding as the script's: it writes a .npy and a Parquet file at the end. One process reads a
shard, so it gets a shard a core.

`--memory` runs generated records (images of 2×2 pixels) through the same pipeline into a Parquet file, and compares the
peak memory of the processes.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.harness import Target, interleave, ratio, report
from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.sources.records import Record

BATCH = 64
DIM = 128


def members(path: Path) -> Iterator[bytes]:
    """Yield the files of an archive."""
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isreg() and (file := archive.extractfile(member)) is not None:
                yield file.read()


def measure_shared(model: Path, path: Path) -> float:
    """Return images/s of decoding and embedding from memory, one batch after the other on all cores."""
    from imagekin.encoder.runtime.session import Encoder

    encoder = Encoder.open(model)
    files = list(members(path))
    cores = len(os.sched_getaffinity(0))
    batches = [files[first : first + BATCH] for first in range(0, len(files), BATCH)]
    encoder.embed_pixels(np.stack([encoder.load_pixels(data) for data in batches[0]]))

    def decoded(part: list[bytes]) -> list[NDArray[np.uint8]]:
        return [encoder.load_pixels(data) for data in part]

    with ThreadPoolExecutor(cores) as pool:
        started = time.perf_counter()
        waiting = []
        for batch in batches:
            waiting.append([pool.submit(decoded, batch[first : first + 16]) for first in range(0, len(batch), 16)])
            if len(waiting) > 2:
                encoder.embed_pixels(np.stack([one for part in waiting.pop(0) for one in part.result()]))
        for parts in waiting:
            encoder.embed_pixels(np.stack([one for part in parts for one in part.result()]))
        return len(files) / (time.perf_counter() - started)


def measure_apart(model: Path, path: Path) -> float:
    """Return images/s of decoding and embedding from memory, each core by itself."""
    from imagekin.encoder.runtime.session import Encoder

    cores = len(os.sched_getaffinity(0))
    encoder = Encoder.open(model, threads=1, sessions=cores)
    files = list(members(path))
    parts = [files[first : first + BATCH // 2] for first in range(0, len(files), BATCH // 2)]
    encoder.embed(parts[0])
    with ThreadPoolExecutor(cores) as pool:
        started = time.perf_counter()
        list(pool.map(encoder.embed, parts))
        return len(files) / (time.perf_counter() - started)


def scaled(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Return an image's pixels as a plain script would read them."""
    return np.array(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))


def measure_dataloader(model: Path, path: Path) -> float:
    """Return images/s of a plain script: torch's DataLoader, Pillow, the same session."""
    import torch

    from imagekin.encoder.runtime.session import Encoder

    encoder = Encoder.open(model)
    side = encoder.metadata.preprocess.width

    class Images(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[NDArray[np.uint8]]:
            worker = torch.utils.data.get_worker_info()
            for number, data in enumerate(members(path)):
                if worker is None or number % worker.num_workers == worker.id:
                    yield scaled(Image.open(io.BytesIO(data)), side)

    loader = torch.utils.data.DataLoader(Images(), batch_size=BATCH, num_workers=len(os.sched_getaffinity(0)))
    started = time.perf_counter()
    kept = [encoder.embed_pixels(batch.numpy()) for batch in loader]
    return sum(map(len, kept)) / (time.perf_counter() - started)


def part_of(package: str, name: str) -> Any:
    """Load one module of a package by its file, without the package's own imports."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations
    path = Path(found.submodule_search_locations[0], *name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"{package}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shards(path: Path, folder: Path) -> list[str]:
    """Write an archive's files to as many archives as there are cores, and return their paths."""
    parts = [folder / f"{number}.tar" for number in range(len(os.sched_getaffinity(0)))]
    with contextlib.ExitStack() as stack:
        archives = [stack.enter_context(tarfile.open(part, "w")) for part in parts]
        for number, data in enumerate(members(path)):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(data)
            archives[number % len(archives)].addfile(member, io.BytesIO(data))
    return [str(part) for part in parts]


def measure_clip_retrieval(model: Path, path: Path) -> float:
    """Return images/s of clip-retrieval's reader, runner and writer around the same session."""
    from imagekin.encoder.runtime.session import Encoder

    reader, runner, writer = (
        part_of("clip_retrieval", f"clip_inference.{one}") for one in ("reader", "runner", "writer")
    )
    encoder = Encoder.open(model)
    side = encoder.metadata.preprocess.width
    done = 0

    def embed(batch: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        vectors = encoder.embed_pixels(batch["image_tensor"].numpy())
        done += len(vectors)
        return {"image_embs": vectors, "image_filename": batch["image_filename"]}

    with tempfile.TemporaryDirectory() as folder:
        parts = shards(path, Path(folder))
        run = runner.Runner(
            lambda sampler: reader.WebdatasetReader(
                sampler,
                lambda image: scaled(image, side),
                None,
                parts,
                BATCH,
                len(parts),
                enable_text=False,
            ),
            lambda: embed,
            lambda part: writer.NumpyWriter(part, folder, False, True, False, 1),
            lambda part: Mock(),  # its logger reports to a service
            1,
        )
        started = time.perf_counter()
        run(0)
        return done / (time.perf_counter() - started)


def measure_index(model: Path, path: Path) -> float:
    """Return images/s of `imagekin index`, into a new collection."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["index", "bench", str(path), "--model", str(model), "--data-dir", folder, "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "imagekin", *command], capture_output=True, text=True, check=True, timeout=600
        )
    return float(json.loads(done.stdout.splitlines()[-1])["images_per_second"])


class Trivial:
    """A model of next to no cost."""

    sessions = 1

    def load_pixels(self, data: bytes, limits: DecodeLimits | None = None) -> NDArray[np.uint8]:
        """Interpret bytes as pixels."""
        return np.frombuffer(data[:12].ljust(12, b"\0"), np.uint8).reshape(2, 2, 3)

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [N, 128]."""
        rows = np.tile(pixels.reshape(len(pixels), -1).astype(np.float32) + 1, (1, DIM // 12 + 1))[:, :DIM]
        unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


def measure_memory(count: int) -> dict[str, float]:
    """Index `count` generated records into a Parquet file; return peak memory in MiB and records/s."""
    from imagekin.index.ingest.pipeline import index_images
    from imagekin.index.ingest.vector_file import VectorFile

    source = (Record(f"{n % 100}/{n}.png", b"%012d" % n, str(n % 100), {"n": n}) for n in range(count))
    folder = Path(tempfile.mkdtemp())
    try:
        with VectorFile(folder / "v.parquet", space="bench", dim=DIM) as file:
            found = index_images(Trivial(), source, file)
    finally:
        shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"records": found.written, "peak_mib": peak, "records_per_second": found.images_per_second}


def alone(*arguments: str) -> str:
    """Run this script in its own process and return its last line."""
    command = [sys.executable, "-m", "bench.batch_index", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=3600)
    return done.stdout.splitlines()[-1]


def compare_memory(counts: list[int]) -> None:
    """Measure peak memory for each number of records."""
    found = [json.loads(alone("--one", "memory", "--records", str(count))) for count in counts]
    rows = [[f"{one['records']:,}", f"{one['peak_mib']:.0f}", f"{one['records_per_second']:,.0f}"] for one in found]
    growth = Target("peak memory, most over fewest records", found[-1]["peak_mib"] / found[0]["peak_mib"], 1.2, False)
    report("batch indexing: memory", ["records", "peak MiB", "records/s"], rows, [growth], {"runs": found}, ["pyarrow"])


def measured(name: str, model: Path, path: Path) -> float:
    """Return a contender's images/s, and print them at once, because a round takes a minute."""
    rate = float(alone("--one", name, "--model", str(model), str(path)))
    print(f"{path.name}: {name} {rate:,.0f} images/s", file=sys.stderr)
    return rate


def compare_rates(model: Path, archives: list[Path], rounds: int) -> None:
    """Measure every contender on every archive, in turn."""
    rows, targets, figures = [], [], {}
    names = list(CONTENDERS)
    ceilings = ("shared", "apart")
    for package in ("clip_retrieval", "webdataset"):
        if importlib.util.find_spec(package) is None and "clip-retrieval" in names:
            print(f"clip-retrieval is left out: no {package} here", file=sys.stderr)
            names.remove("clip-retrieval")
    for path in archives:
        contenders = {name: partial(measured, name, model, path) for name in names}
        found = interleave(contenders, rounds)
        share = min(ratio(found["index"], found[ceiling]) for ceiling in ceilings)
        medians = {name: float(np.median(values)) for name, values in found.items()}
        figures[path.name] = {**medians, "share_of_ceiling": share, "rounds": found}
        rows.append([path.name, *(f"{medians[name]:,.0f}" for name in contenders), f"{share:.2f}"])
        targets.append(Target(f"{path.name}: imagekin index over the ceiling", share, 0.9, True))
    shown = {
        "index": "imagekin index",
        "shared": "decode + model, batches shared",
        "apart": "decode + model, cores apart",
        "dataloader": "DataLoader script",
    }
    columns = ["archive", *(shown.get(name, name) for name in names), "of the better ceiling"]
    report("batch indexing: images/s", columns, rows, targets, figures, ["onnxruntime", "pillow", "torch"])


CONTENDERS = {
    "index": measure_index,
    "shared": measure_shared,
    "apart": measure_apart,
    "dataloader": measure_dataloader,
    "clip-retrieval": measure_clip_retrieval,
}


def main() -> None:
    """Run the measurement that the command line chooses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", nargs="*", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--records", default="10000,1000000")
    parser.add_argument("--one", choices=[*CONTENDERS, "memory"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one == "memory":
        print(json.dumps(measure_memory(int(options.records))))
    elif options.one:
        print(CONTENDERS[options.one](options.model, options.archives[0]))
    elif options.memory:
        compare_memory([int(count) for count in options.records.split(",")])
    elif options.model is None or not options.archives:
        parser.error("give --model and archives, or --memory")
    else:
        compare_rates(options.model, options.archives, options.rounds)


if __name__ == "__main__":
    main()
