"""The examples run from their first cell to their last, and the shop answers."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from reference import notebooks
from tests.artifacts import tiny_artifact
from tests.e2e.pictures import class_folders, picture
from tests.e2e.processes import quiet_environment, running_server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("script", notebooks.scripts(), ids=lambda script: script.stem)
def test_a_notebook_has_the_cells_of_its_script(script: Path) -> None:
    pytest.importorskip("jupytext", reason="jupytext is not installed")
    made = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert made == notebooks.notebook_text(script), "run `make notebooks`"
    cells = [cell for cell in json.loads(made)["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == script.read_text(encoding="utf-8").count("# %%\n") > 2


def test_every_notebook_has_a_script() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == {path.stem for path in notebooks.scripts()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the readers have: photos of three classes, some held out, and a model that needs no torch."""
    class_folders(tmp_path / "photos", per_class=12)
    class_folders(tmp_path / "held-out", per_class=2, first=12)
    tiny_artifact(tmp_path / "model.onnx")
    return tmp_path


def run(name: str, folder: Path) -> str:
    """Run an example as a script and return what it printed."""
    environment = quiet_environment() | {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "IMAGEKIN_ADAPT_EPOCHS": "2",
        "IMAGEKIN_ADAPT_CACHE_DIR": str(folder / "cache"),
    }
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_first_search_finds_the_photo_itself_and_its_like(folder: Path) -> None:
    said = run("first_search.py", folder)
    assert said.startswith("36 photos of 3 classes\n1.000  blue  blue/0000.png\n")
    assert "red " in said.splitlines()[-1]


def test_the_clean_up_puts_a_photo_in_the_wrong_folder_right_and_back(folder: Path) -> None:
    shutil.move(folder / "photos" / "red" / "0003.png", folder / "photos" / "blue" / "stray.png")
    said = run("label_cleanup.py", folder)
    assert "blue/stray.png is blue - its neighbours say red" in said
    assert "100.0% after 1 corrections" in said
    assert "'relabelled': 1" in said
    assert "35" not in said.splitlines()[0]  # all 36 are counted, the stray one among them


def test_adapting_says_what_it_is_worth(folder: Path) -> None:
    pytest.importorskip("torch", reason="adapting needs torch")
    said = run("adapt.py", folder)
    assert re.search(r"^held out: \d+\.\d% before, \d+\.\d% after$", said, re.MULTILINE)
    assert re.search(r"^adapted: \d+\.\d% of 6 photos$", said, re.MULTILINE)


def test_the_shop_answers_by_product_and_by_photo(folder: Path) -> None:
    for module in ("fastapi", "uvicorn", "python_multipart"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    with running_server(folder / "model.onnx", folder / "data") as server, running_shop(server.address) as shop:
        for number, (kind, path) in enumerate((path.parent.name, path) for path in sorted(folder.glob("photos/*/*"))):
            ask(f"{shop}/products/{number}?kind={kind}&price={number}", path.read_bytes(), "PUT")
        like = ask(f"{shop}/products/30/similar?k=3&below=32.5")
        assert {one["kind"] for one in like} == {"red"}
        assert all(one["price"] <= 32.5 and one["number"] != "30" for one in like)
        assert ask(f"{shop}/similar?k=2", picture((50, 190, 70), 99))[0]["kind"] == "green"
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(f"{shop}/products/none/similar")
        assert refused.value.code == 404
        assert "no item 'none'" in json.load(refused.value)["message"]


@contextlib.contextmanager
def running_shop(address: str) -> Iterator[str]:
    """Start the shop beside a server, and yield its address."""
    environment = quiet_environment() | {"IMAGEKIN_ADDRESS": address}
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", "0", "shop:app"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said: list[str] = []
            while not (found := re.search(r"running on (http://\S+)", "".join(said[-1:]))):
                said.append(process.stderr.readline())
                assert said[-1], f"the shop did not start: {''.join(said)}"
            yield found[1]
        finally:
            process.kill()


def ask(address: str, photo: bytes | None = None, method: str | None = None) -> list[dict[str, Any]]:
    """Call the shop, with a photo as a form where there is one, and return its JSON."""
    request = urllib.request.Request(address, method=method)  # noqa: S310
    if photo is not None:
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n'
        request.data = head.encode() + photo + f"\r\n--{mark}--\r\n".encode()
        request.add_header("Content-Type", f"multipart/form-data; boundary={mark}")
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        found: list[dict[str, Any]] = json.load(answer)
    return found
