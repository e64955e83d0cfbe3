"""A serving install, made as a user makes it: no torch, small, and plain about what is missing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.artifacts import tiny_artifact
from tests.e2e.processes import quiet_environment
from tests.project.packages import FOLDERS, application, checkout

ROOT = Path(__file__).resolve().parents[2]
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def serving_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment after the Dockerfile's own install line of the `serve` image."""
    line = re.search(
        r"AS build-serve\nRUN /opt/imagekin/bin/pip (install .*)$", (ROOT / "Dockerfile").read_text(), re.M
    )
    assert line is not None
    folder, source = tmp_path_factory.mktemp("serving"), checkout(tmp_path_factory.mktemp("checkout"))
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    arguments = [word.strip("'") for word in line[1].split()]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--no-cache-dir"]
    subprocess.run([*pip, *arguments], check=True, cwd=source, timeout=600, capture_output=True)
    return folder / "bin" / "python"


def test_it_takes_at_most_350_megabytes(serving_python: Path) -> None:
    folder = serving_python.parent.parent
    # Hard links and symbolic links count once and not at all: what `du` says.
    files = {path.stat().st_ino: path.stat().st_blocks * 512 for path in folder.rglob("*") if not path.is_symlink()}
    assert sum(files.values()) <= 350 * MEGABYTE


def test_it_has_no_torch_and_still_has_the_command(serving_python: Path, tmp_path: Path) -> None:
    have = subprocess.run(
        [str(serving_python), "-m", "pip", "list"], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert not re.search(r"^torch", have, re.M)
    command = str(serving_python.with_name("imagekin"))
    for arguments in (["--help"], ["serve", "--help"], ["index", "--help"]):
        subprocess.run([command, *arguments], check=True, capture_output=True, cwd=tmp_path, timeout=60)


def test_the_demo_starts_commands_of_it(serving_python: Path, tmp_path: Path) -> None:
    code = "from imagekin.cli import demo_run; demo_run._imagekin('version', '--json')"
    environment = {name: value for name, value in quiet_environment().items() if name != "PYTHONPATH"}
    command = [str(serving_python), "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


APPLICATION = """
import subprocess, sys, time
from pathlib import Path

{imports}

import numpy as np
from imagekin import Client

server = subprocess.Popen([sys.executable, "-m", "imagekin", "serve", *sys.argv[1:], "--port-file", "port"])
try:
    while not Path("port").exists() and server.poll() is None:
        time.sleep(0.05)
    with Client("127.0.0.1:" + Path("port").read_text()) as client:
        client.wait_ready(60)
        print(client.embed([np.zeros((32, 32, 3), np.uint8)]).shape)
finally:
    server.terminate()
    assert server.wait(60) == 0
"""


def test_an_application_keeps_its_own_folders_of_our_names(serving_python: Path, tmp_path: Path) -> None:
    app = application(tmp_path / "app")
    imports = "\n".join(f"import {name}; assert {name}.OWNER == 'application'" for name in FOLDERS)
    (app / "main.py").write_text(APPLICATION.format(imports=imports))
    model = tiny_artifact(tmp_path / "model.onnx")
    options = ["--model", str(model), "--data-dir", str(tmp_path / "data"), "--address", "127.0.0.1:0"]
    environment = {name: value for name, value in quiet_environment().items() if name != "PYTHONPATH"}
    command = [str(serving_python), "main.py", *options]
    done = subprocess.run(command, cwd=app, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 16)\n"


def test_training_there_says_what_to_install(serving_python: Path, tmp_path: Path) -> None:
    command = [str(serving_python.with_name("imagekin")), "train", "digits", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert ".[train]" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
