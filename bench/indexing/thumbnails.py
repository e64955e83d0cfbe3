"""Measure how long it takes to read thumbnails where a collection has a million.

    python bench/indexing/thumbnails.py [--thumbnails 1000000] [--folder DIR]

Writes thumbnails of 5 KB (random bytes, as JPEG files are as good as) as `imagekin index` does, some hundred a
transaction, and reads them by their content, in random order: one, and a page of sixty. Takes 6 GB of disk, which is
given back, and some minutes. Expected: ≤ 0.1 ms each.
"""

import argparse
import hashlib
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.harness import Target, report
from imagekin.index.local.thumbnails import FILE, Thumbnails, create

BYTES, AT_ONCE, PAGE, READS = 5_000, 512, 60, 5_000


def content(number: int) -> bytes:
    """Return the content hash of an image."""
    return hashlib.sha256(str(number).encode()).digest()


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thumbnails", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    draw = random.Random(0)  # noqa: S311
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        create(folder, 160)
        kept = Thumbnails(folder, "shop", read_only=False)
        began = time.perf_counter()
        for first in range(0, options.thumbnails, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, options.thumbnails))
            with kept.kept({content(number): os.urandom(BYTES) for number in numbers}):
                pass
        written = time.perf_counter() - began
        kept.close()
        gigabytes = (folder / FILE).stat().st_size / 1e9
        reader = Thumbnails(folder, "shop", read_only=True)

        def milliseconds(count: int) -> float:
            hashes = [content(draw.randrange(options.thumbnails)) for _ in range(count)]
            before = time.perf_counter()
            found = reader.get(hashes)
            taken = time.perf_counter() - before
            assert all(found)
            return taken * 1_000 / count

        one = [milliseconds(1) for _ in range(READS)]
        page = [milliseconds(PAGE) for _ in range(READS // PAGE)]
        reader.close()
    median, of_page = statistics.median(one), statistics.median(page)
    slowest = statistics.quantiles(one, n=100)[98]
    rows = [
        ("one, median", f"{median:.3f} ms"),
        ("one, 99 of 100", f"{slowest:.3f} ms"),
        (f"each of a page of {PAGE}", f"{of_page:.3f} ms"),
        ("writing each", f"{written * 1_000 / options.thumbnails:.3f} ms"),
        ("file", f"{gigabytes:.1f} GB"),
    ]
    targets = [Target("reading one, ms", median, 0.1, False)]
    figures = {"thumbnails": options.thumbnails, "one_ms": median, "one_ms_99": slowest, "page_ms": of_page}
    report("reading thumbnails", ("what", "cost"), rows, targets, figures, ["numpy"])


if __name__ == "__main__":
    main()
