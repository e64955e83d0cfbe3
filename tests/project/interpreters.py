"""Installs the wheel for every other Python that is here, and runs the first commands with it.

    python -m tests.project.interpreters [PYTHON...]

Takes interpreters from the arguments, else from pyenv, uv and the path: one of each minor version from 3.11 on. Each
gets a fresh environment with the extra `cpu`, by the versions of `constraints.txt`; packages come from the package
index. Prints a line for each, and exits with 1 when one fails.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.artifacts import tiny_artifact
from tests.e2e.pictures import class_folders
from tests.project.packages import ROOT, build, checkout

_PLACES = ("~/.pyenv/versions/*/bin/python3", "~/.local/share/uv/python/*/bin/python3")
_OLDEST = (3, 11)
_COMMANDS = (
    "imagekin version",
    "imagekin index shop photos --model model.onnx --data-dir data",
    "imagekin search photos/red/0000.png --collection shop --data-dir data --model model.onnx --k 2",
    "imagekin classify photos --collection shop --data-dir data --model model.onnx",
    "imagekin collection verify shop --data-dir data",
)


def interpreters() -> dict[tuple[int, int], Path]:
    """Return an interpreter of each minor version that is here, without this one's."""
    named = [Path(name) for name in sys.argv[1:]]
    if not named:
        for place in _PLACES:
            root, _, pattern = os.path.expanduser(place).partition("/*/")
            named += sorted(Path(root).glob(f"*/{pattern}"))
        named += [Path(one) for minor in range(11, 20) if (one := shutil.which(f"python3.{minor}"))]
    found: dict[tuple[int, int], Path] = {}
    for path in named:
        asked = subprocess.run([path, "--version"], capture_output=True, text=True)
        if asked.returncode == 0 and (said := re.match(r"Python (\d+)\.(\d+)", asked.stdout)):
            found.setdefault((int(said[1]), int(said[2])), path)
    return {version: path for version, path in found.items() if version >= _OLDEST and version != sys.version_info[:2]}


def tried(python: Path, wheel: Path, folder: Path) -> str:
    """Return the failure of an interpreter, empty when it had none."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "IMAGEKIN_"))}
    venv = folder / "venv"
    environment["PATH"] = f"{venv / 'bin'}:{environment['PATH']}"
    install = ["install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[cpu]"]
    for command in (
        [str(python), "-m", "venv", str(venv)],
        [str(venv / "bin" / "python"), "-m", "pip", *install],
        *(one.split() for one in _COMMANDS),
    ):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
        if done.returncode != 0:
            return f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}"
    return ""


def main() -> int:
    """Try all of them; return the exit status."""
    failed = 0
    with TemporaryDirectory() as place:
        wheel = build("wheel", checkout(Path(place) / "checkout"), Path(place) / "wheel")
        for (major, minor), python in sorted(interpreters().items()):
            folder = Path(place) / f"{major}.{minor}"
            class_folders(folder / "photos", per_class=3)
            tiny_artifact(folder / "model.onnx")
            wrong = tried(python, wheel, folder)
            failed += bool(wrong)
            print(f"Python {major}.{minor} ({python}): {wrong or 'works'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
