"""A clean checkout, the packages that are built from it, and an application that has folders of our names."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("cli", "client", "encoder", "index", "serving", "sources", "training")
# What pip calls; without pip, nothing is fetched.
BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1]) if sys.argv[2] == "wheel" else build_meta.build_sdist(sys.argv[1]))
"""


def checkout(folder: Path) -> Path:
    """Copy what git tracks, as it is in the working tree; links stay links."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        # A file may be deleted in the working tree.
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a `wheel` or an `sdist` of a source tree and return the file."""
    command = [sys.executable, "-c", BUILD, str(target), kind]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def application(folder: Path) -> Path:
    """Make an application's folder in which every one of our folders' names is a module of its own."""
    folder.mkdir()
    for name in FOLDERS:
        # Some are files, some are packages.
        path = folder / f"{name}.py" if name in ("cli", "index") else folder / name / "__init__.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("OWNER = 'application'\n")
    return folder
