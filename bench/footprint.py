"""Measure the footprint of a serving install: its size on disk and the time to import the client.

    python bench/footprint.py

Makes a virtual environment with the install line of the Dockerfile's `serve` image, takes its size, and times
`from imagekin import Client` in fresh interpreters against an interpreter that imports nothing. About a minute.
Expected: ≤ 350 MB and ≤ 0.5 s.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import Target, interleave, report

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 11


def install(folder: Path) -> Path:
    """Make the environment and return its interpreter."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    line = re.search(r"AS build-serve\nRUN /opt/imagekin/bin/pip (install .*)$", dockerfile, re.MULTILINE)
    if line is None:
        raise SystemExit("the Dockerfile has no install line of the serve image")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    arguments = [word.strip("'") for word in line[1].split()]
    subprocess.run([str(python), "-m", "pip", "--quiet", "--no-cache-dir", *arguments], check=True, cwd=ROOT)
    return python


def disk_bytes(folder: Path) -> int:
    """Return the space that a folder takes on disk, every file once."""
    blocks = {path.lstat().st_ino: path.lstat().st_blocks for path in folder.rglob("*")}
    return 512 * sum(blocks.values())


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as temporary:
        python = install(Path(temporary) / "venv")
        megabytes = disk_bytes(python.parent.parent) / 2**20

        def seconds(statement: str) -> float:
            start = time.perf_counter()
            subprocess.run([str(python), "-c", statement], check=True, cwd=temporary)
            return time.perf_counter() - start

        times = interleave(
            {"client": lambda: seconds("from imagekin import Client"), "nothing": lambda: seconds("pass")}, ROUNDS
        )
    import_seconds = statistics.median(
        client - nothing for client, nothing in zip(times["client"], times["nothing"], strict=True)
    )
    targets = [Target("install, MB", megabytes, 350, False), Target("client import, s", import_seconds, 0.5, False)]
    rows = [("install on disk", f"{megabytes:.0f} MB"), ("from imagekin import Client", f"{import_seconds:.3f} s")]
    figures = {"install_megabytes": megabytes, "client_import_seconds": import_seconds, "rounds": ROUNDS}
    report("a serving install", ("what", "cost"), rows, targets, figures, ["grpcio", "numpy"])


if __name__ == "__main__":
    main()
