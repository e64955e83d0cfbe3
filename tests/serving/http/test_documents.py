"""The examples of docs/reference/http.md, run by a real shell against a real server."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from imagekin.serving.settings import Settings
from tests.serving.http.calling import Caller
from tests.serving.running import running

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "reference" / "http.md").read_text(encoding="utf-8")


def test_its_error_is_one_that_comes(call: Caller) -> None:
    call("POST", "/v1/collections", {"name": "documented"})
    (shown,) = re.findall(r'^(\{"code".*\})$', TEXT, re.MULTILINE)
    answer = call("GET", "/v1/collections/documented/scroll?page_token=mine")
    assert (answer.status, answer.json) == (400, json.loads(shown))


def test_every_example_works(model_path: Path, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("the curl command is not here")
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "photo.jpg")
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "other.png")
    settings = Settings(
        address="127.0.0.1:0",
        http_address="127.0.0.1:0",
        models=(("model", model_path),),
        data_dir=tmp_path / "data",
    )
    blocks = "".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL))
    # -f makes a status of 400 and more a failure; -g takes what stands in the query as it is.
    script = blocks.replace("curl -s", "echo; curl -sfg")
    assert script.count("curl") > 20
    with running(settings) as server:
        variables = f"HTTP=http://127.0.0.1:{server.server.http_port}\nSHOP=$HTTP/v1/collections/shop\n"
        done = subprocess.run(
            ["bash", "-euxc", variables + script], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
