"""Measure the memory of reading and indexing large sources, step by step.

    python -m bench.indexing.source_memory [--records 1000000] [--index 200000] [--folder DIR]
        [--kinds tar,tar.gz,zip,parquet,table,folder]

Sources of one tiny picture under many names, in a hundred classes, are made in a temporary folder. Each is read to its
end by a process of its own, classes and splits included, and its resident memory is printed at every tenth of the way;
then `imagekin index` indexes smaller ones with an encoder of next to no cost, while its memory is looked at from
outside. Of a folder there are as many files as are indexed, because files take long to make.
"""

import argparse
import csv
import gzip
import io
import json
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from bench.harness import Target, report, resident_megabytes

STEPS = 10


def picture() -> bytes:
    """Return a PNG file of one shade."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (90, 120, 30)).save(file, "PNG")
    return file.getvalue()


def names(count: int) -> Iterator[str]:
    """Yield keys of a hundred classes."""
    return (f"class {number % 100}/{number:07}.png" for number in range(count))


def write_tar(path: Path, count: int) -> None:
    """Write a tar archive, compressed if its name says so."""
    data = picture()
    member = tarfile.TarInfo()
    member.size = len(data)
    body = data.ljust(-(-len(data) // 512) * 512, b"\0")
    with gzip.open(path, "wb", 1) if path.suffix == ".gz" else path.open("wb") as file:
        for name in names(count):
            member.name = name
            file.write(member.tobuf(tarfile.USTAR_FORMAT) + body)
        file.write(bytes(1024))


def write_zip(path: Path, count: int) -> None:
    """Write a zip archive."""
    data = picture()
    with zipfile.ZipFile(path, "w") as archive:
        for name in names(count):
            archive.writestr(name, data)


def write_parquet(path: Path, count: int) -> None:
    """Write a Parquet file as the Hub has them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.string()})
    data = picture()
    with pq.ParquetWriter(path, schema, use_dictionary=["label"]) as file:
        for first in range(0, count, 10_000):
            labels = [f"class {number % 100}" for number in range(first, min(count, first + 10_000))]
            images = [{"bytes": data, "path": "image.png"}] * len(labels)
            file.write_table(pa.table({"image": images, "label": labels}, schema))


def write_table(path: Path, count: int) -> None:
    """Write a table that names one file again and again under keys of their own."""
    (path.parent / "one.png").write_bytes(picture())
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "path", "label"])
        rows.writerows((name, "one.png", name.partition("/")[0]) for name in names(count))


def write_folder(path: Path, count: int) -> None:
    """Write a folder of class folders."""
    data = picture()
    for number in range(100):
        (path / f"class {number}").mkdir(parents=True)
    for name in names(count):
        (path / name).write_bytes(data)


KINDS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "tar": ("images.tar", write_tar),
    "tar.gz": ("images.tar.gz", write_tar),
    "zip": ("images.zip", write_zip),
    "parquet": ("images.parquet", write_parquet),
    "table": ("list.csv", write_table),
    "folder": ("images", write_folder),
}


def read(source: Path, count: int) -> dict[str, object]:
    """Read a source to its end in this process; return its memory at the beginning, at each step and at its peak."""
    from imagekin.sources.open import open_source

    opened = open_source(source)
    before, started = resident_megabytes(), time.perf_counter()
    classes = len(opened.plan.classes)
    planned, steps, seen = resident_megabytes(), [], 0
    for record in opened:
        assert isinstance(record.data, bytes), record.data
        seen += 1
        if seen % (count // STEPS) == 0:
            steps.append(resident_megabytes())
    assert (seen, classes) == (count, 100), (seen, classes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = time.perf_counter() - started
    return {"before": before, "planned": planned, "steps": steps, "peak": peak, "rate": count / seconds}


def index(source: Path, count: int, folder: Path) -> dict[str, object]:
    """Index a source by the command; return its memory twice a second, thinned to a few steps, and its peak."""
    from tests.artifacts import tiny_artifact

    model = tiny_artifact(folder / "model.onnx")
    command = [sys.executable, "-m", "imagekin", "index", "bench", str(source), "--model", str(model), "--json"]
    options = ["--data-dir", str(folder / "data"), "--thumbnails", "0"]
    seen: list[float] = []
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            seen.append(resident_megabytes(str(process.pid)))
            time.sleep(0.5)
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    figures = json.loads(output.splitlines()[-1])
    assert figures["written"] == count
    shutil.rmtree(folder / "data")
    seen = [value for value in seen if value]
    steps = [seen[len(seen) * step // STEPS] for step in range(1, STEPS)] + seen[-1:]
    return {
        "before": seen[0],
        "planned": seen[0],
        "steps": steps,
        "peak": max(seen),
        "rate": figures["images_per_second"],
    }


def measured(kind: str, mode: str, count: int, root: Path | None) -> dict[str, object]:
    """Make a source, measure it in a process of its own, and remove it."""
    name, write = KINDS[kind]
    with tempfile.TemporaryDirectory(dir=root) as folder:
        source = Path(folder) / name
        write(source, count)
        command = [
            sys.executable,
            "-m",
            "bench.indexing.source_memory",
            "--one",
            mode,
            "--records",
            str(count),
            str(source),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    print(kind, mode, json.dumps(found), file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measure all kinds, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--index", type=int, default=200_000)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one", choices=["read", "index"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one == "read":
        print(json.dumps(read(options.source, options.records)))
        return
    if options.one == "index":
        print(json.dumps(index(options.source, options.records, options.source.parent)))
        return
    rows, targets, figures = [], [], {}
    for kind in options.kinds.split(","):
        for mode, wanted in (("read", options.records), ("index", options.index)):
            count = min(wanted, options.index) if kind == "folder" else wanted
            if not count:
                continue
            found = figures[f"{kind} {mode}"] = measured(kind, mode, count, options.folder)
            steps = found["steps"]
            assert isinstance(steps, list)
            shown = [f"{value:.0f}" for value in (found["before"], found["planned"], steps[0], steps[4], steps[-1])]
            rows.append([kind, mode, f"{count:,}", *shown, f"{found['peak']:.0f}", f"{found['rate']:,.0f}"])
            targets.append(Target(f"{kind}, {mode}: last step over the first", steps[-1] / steps[0], 1.2, False))
    columns = ["source", "what", "records", "opened", "planned", "10 %", "50 %", "all", "peak", "records/s"]
    report("memory of large sources, MiB", columns, rows, targets, figures, ["pyarrow"])


if __name__ == "__main__":
    main()
