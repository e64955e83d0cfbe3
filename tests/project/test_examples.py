"""Every command and snippet of the documentation runs as it stands, page by page, against real processes.

The pages of `test_readme` run there, on real photos. Here a page's blocks make one script, in a folder with three
classes of small pictures, an artifact that needs no torch, and a collection `shop`. What is not run stands in a table
with its reason. Servers take free ports: each number of a page becomes that of the server that its test has started.
"""

import contextlib
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest

from imagekin.cli.main import run as run_command
from imagekin.serving.transport.access import read_tokens
from tests.artifacts import tiny_artifact
from tests.e2e.pictures import class_folders, picture
from tests.project.fences import Fence, fences, pages, text
from tests.project.shell import run_bash

# Pages whose blocks another test runs.
ELSEWHERE = {
    "README.md": "tests/project/test_readme.py",
    "docs/tutorials/tour.md": "tests/project/test_readme.py",
    "docs/reference/sources.md": "tests/project/test_readme.py",
    "docs/how-to/encoders.md": "tests/project/test_readme.py",
    "docs/how-to/data-sets.md": "tests/client/bridges/test_pages.py",
    "docs/how-to/bridges.md": "tests/client/bridges/test_pages.py",
    "docs/reference/python.md": "tests/project/test_readme.py",
    "docs/reference/http.md": "tests/serving/http/test_documents.py",
    "docs/how-to/proxies.md": "tests/serving/transport/test_proxies.py",
}
# Blocks that cannot run here, by page and the beginning of their first line.
NOT_RUN = {
    ("docker.md", "mkdir -p data"): "needs Docker; tests/project/test_dockerfile.py reads the commands",
    ("docker.md", "docker run"): "needs Docker; tests/project/test_dockerfile.py reads the commands",
    ("docker.md", "cp run/model.onnx"): "needs Docker; tests/project/test_compose.py checks the file",
    ("gpu.md", "pip install"): "needs a GPU",
    ("kubernetes.md", "kubectl create secret"): "needs a cluster; tests/project/test_deploy.py checks the manifests",
    ("map.md", "curl --data-binary"): "asks a server that the page does not start; tests/serving/http asks for places",
    ("milvus.md", "pip install"): "needs Milvus; tests/index/milvus runs on its embedded engine",
    ("operations.md", "from imagekin import Client, Tls"): (
        "asks a server elsewhere; tests/e2e/test_client_certificates.py"
    ),
    ("operations.md", "imagekin search photo.jpg"): "asks a server elsewhere; tests/e2e/test_client_certificates.py",
    ("ray.md", "pip install"): "needs a cluster; tests/index/ingest runs on Ray's local one",
    ("ray.md", "ray job submit"): "needs a cluster",
    ("several-machines.md", "torchrun --standalone --nproc-per-node 4 -m imagekin.training photos.tar"): (
        "work for four GPUs; tests/training/loop/test_torchrun.py runs torchrun"
    ),
    ("several-machines.md", "torchrun --nnodes 2"): "needs two machines",
    ("several-machines.md", "torchrun --standalone --nproc-per-node 4 -m imagekin.training --out run --resume"): (
        "work for four GPUs; tests/training/loop/test_torchrun.py resumes a run"
    ),
    ("systemd.md", "useradd --system"): "changes the machine; tests/project/test_deploy.py checks the unit",
    ("from-clip-retrieval.md", "imagekin adopt timm:vit_base"): (
        "downloads CLIP; tests/encoder/adoption adopts timm's encoders with random weights"
    ),
    ("adapt.md", "imagekin train photos"): "takes 20 minutes; README and tour train",
}
# Lines that other tests run, and what takes their place here.
LINES = {
    "pip install '.[cpu,train]'": "true",  # .ci/run
    "pip install '.[map]'": "true",  # .ci/run installs what it brings
    "imagekin adopt efficientnet-lite0 --out model.onnx": "true",  # test_readme.py
    "imagekin adopt efficientnet-lite0 --out lite0.onnx": "cp model.onnx lite0.onnx",
    "imagekin adapt lite0.onnx photos --out adapted.onnx": "cp model.onnx adapted.onnx",  # tests/examples
    # What a reader does in a program for tables.
    "imagekin review shop --data-dir data --apply shop-review.csv": (
        "sed -i '2s/^,/delete,/' shop-review.csv\nimagekin review shop --data-dir data --apply shop-review.csv"
    ),
}
PORTS = {"50051": "GRPC_PORT", "8080": "HTTP_PORT", "9090": "METRICS_PORT"}
_RUN = ("bash", "sh", "python", "js", "toml")
_PORT = re.compile(r"(127\.0\.0\.1|localhost):(50051|8080|9090)\b")
# The server's own answer says which ports it has; its pid ends the wait when it could not start.
_WAIT = """
until test -s port || ! kill -0 $!; do sleep 0.05; done
export GRPC_PORT=$(cat port) IMAGEKIN_ADDRESS=127.0.0.1:$(cat port)
if test -s http-port; then export HTTP_PORT=$(cat http-port); fi
if test -s metrics-port; then export METRICS_PORT=$(cat metrics-port); fi
"""


def to_run(page: str) -> list[Fence]:
    """Return the blocks of a page that run here."""
    return [fence for fence in fences(page, *_RUN) if exception(fence) is None]


def exception(fence: Fence) -> tuple[str, str] | None:
    """Return the entry of the table by which a block does not run here, None where it runs."""
    return next((key for key in NOT_RUN if Path(fence.page).name == key[0] and fence.first.startswith(key[1])), None)


PAGES = [page for page in pages() if page not in ELSEWHERE and to_run(page)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the readers of the pages have: pictures in folders of their classes, a model, and a collection of them."""
    folder = tmp_path_factory.mktemp("reader")
    class_folders(folder / "photos", per_class=5)
    class_folders(folder / "held-out", per_class=2, first=5)
    (folder / "photo.jpg").write_bytes(picture((220, 50, 40), 77, format="JPEG"))
    tiny_artifact(folder / "model.onnx")
    files = sorted((folder / "photos").rglob("*.png"))
    np.save(folder / "img_emb_0.npy", np.random.default_rng(0).normal(size=(len(files), 8)).astype(np.float16))
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    pq.write_table(pa.table({"image_path": [str(file) for file in files]}), folder / "metadata_0.parquet")
    with contextlib.chdir(folder):
        assert run_command(["index", "shop", "photos", "--model", "model.onnx", "--data-dir", "data"]) == 0
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page: str, prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(prepared, folder)
    script = "\n".join(as_script(fence, number, folder) for number, fence in enumerate(to_run(page)))
    for program in ("curl", "openssl"):
        if re.search(rf"\b{program} -|\b{program} (req|rand)", script) and shutil.which(program) is None:
            pytest.skip(f"the {program} command is not here")
    settings = {"IMAGEKIN_SERVE_PORT_FILE": "port"}
    if ":8080" in text(page):
        settings["IMAGEKIN_SERVE_HTTP_PORT_FILE"] = "http-port"
    if ":9090" in text(page):
        settings["IMAGEKIN_SERVE_METRICS_PORT_FILE"] = "metrics-port"
    status, said = run_bash(script, folder, settings, traced=True)
    assert status == 0, f"{page}:\n{said}"


def as_script(fence: Fence, number: int, folder: Path) -> str:
    """Return a block as lines of a bash script that runs it."""
    if fence.language == "toml":
        check_settings(fence, folder / f"block-{number}.toml")
        return ""
    if fence.language in ("python", "js"):
        name = f"block-{number}.{'py' if fence.language == 'python' else 'mjs'}"
        (folder / name).write_text(_PORT.sub(lambda found: f"{found[1]}:@{PORTS[found[2]]}@", fence.text))
        program = "python" if fence.language == "python" else "node"
        if program == "node" and not has_node():
            return f"echo 'no Node.js 20 here: {fence.page}:{fence.line} is not run'"
        filled = "; ".join(f"s/@{port}@/${{{port}:-}}/g" for port in PORTS.values())
        return f'sed -i "{filled}" {name}\n{program} {name}'
    return "\n".join(as_line(line) for line in re.sub(r"\\\n\s*", "", fence.text).splitlines())


def has_node() -> bool:
    """Return whether there is a Node.js that the pages' snippets can run on."""
    asked = 'process.exit(require("fs").openAsBlob ? 0 : 1)'
    return shutil.which("node") is not None and subprocess.run(["node", "-e", asked]).returncode == 0


def as_line(line: str) -> str:
    """Return a line of a page as it runs here: servers in the background and on free ports."""
    command = line.split("  #")[0].strip()
    if command in LINES:
        return LINES[command]
    if re.match(r'imagekin serve|(http-|metrics-)?address = "', command):
        line = _PORT.sub(r"\1:0", line)
    else:
        line = _PORT.sub(lambda found: f"{found[1]}:${PORTS[found[2]]}", line)
    if command.startswith("imagekin serve") and "--print-config" not in command:
        address = "" if command == "imagekin serve &" else " --address 127.0.0.1:0"
        started = f"{command.removesuffix('&').strip()}{address} &".replace(":8080", ":0")
        return f"rm -f port http-port metrics-port\n{started}{_WAIT}"
    return line


def check_settings(fence: Fence, path: Path) -> None:
    """Read a block of TOML as the command or the server would."""
    path.write_text(fence.text)
    path.chmod(0o600)
    if "token" in tomllib.loads(fence.text):
        assert read_tokens(path)
    else:
        assert run_command(["--config", str(path), "version"]) == 0


def test_what_is_not_run_is_there_and_has_a_reason() -> None:
    met = {exception(fence) for page in pages() for fence in fences(page, *_RUN)}
    assert NOT_RUN.keys() <= met, "a block has changed: correct the table"
    assert all(NOT_RUN.values())
    lines = {
        line.split("  #")[0].strip() for page in PAGES for fence in to_run(page) for line in fence.text.splitlines()
    }
    assert LINES.keys() <= lines


def test_every_command_stands_in_a_fence() -> None:
    programs = ("imagekin", "pip", "curl", "docker", "kubectl", "python", "ray", "torchrun", "make")
    for page in pages():
        bare = re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)
        indented = [line for line in bare.splitlines() if line.startswith("    ") and line.split()[:1]]
        loose = [line for line in indented if shlex.split(line, posix=False)[0] in programs and "…" not in line]
        assert not loose, page
        unknown = {fence.language for fence in fences(page)} - {*_RUN, "text", "json", "dockerfile"}
        assert not unknown, f"{page}: a fence has a language that no test knows"
