"""The Dockerfile: clean by the linter, not root, four targets, and install lines that pip can follow."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imagekin.cli.main import COMMANDS, load_command
from imagekin.cli.main import run as run_command
from imagekin.version import VERSION
from tests.project.fences import pages, text

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_linter_finds_nothing() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert linter is not None, "hadolint is one of the dev extras"
    done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_makes_the_four_images_and_none_runs_as_root() -> None:
    parents = {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)}
    for target in ("serve", "serve-gpu", "serve-milvus", "train"):
        stage = target
        while stage != "runtime":
            stage = parents[stage]
    runtime = DOCKERFILE.split(" AS runtime\n")[1].split("\nFROM ")[0]
    assert runtime.rstrip().endswith("USER 10001:10001")


def test_images_tell_what_they_are_and_whether_they_are_well() -> None:
    runtime = DOCKERFILE.split(" AS runtime\n")[1].split("\nFROM ")[0]
    labels = dict(re.findall(r'org\.opencontainers\.image\.([a-z.]+)="([^"]*)"', runtime))
    assert {"title", "description", "licenses"} <= labels.keys()
    serve = DOCKERFILE.split(" AS serve-base\n")[1].split("\nFROM ")[0]
    assert 'CMD ["imagekin", "health"' in serve
    # One version: of the package, of the image, and of what the manifests start.
    assert labels["version"] == VERSION
    named = re.findall(r"newTag: \"([^\"]*)\"", "".join(path.read_text() for path in (ROOT / "deploy").rglob("*.yaml")))
    named += re.findall(r"^FROM imagekin:([\d.]+)$", (ROOT / "docs/how-to/kubernetes.md").read_text(), re.MULTILINE)
    assert named
    assert set(named) == {VERSION}


def test_what_readers_are_told_to_run_is_a_command_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    serve = DOCKERFILE.split(" AS serve-base\n")[1].split("\nFROM ")[0]
    assert 'ENTRYPOINT ["imagekin"]' in serve
    default = json.loads(serve.split("\nCMD ")[1].replace("\\\n", ""))
    exposed = set(serve.split("EXPOSE ")[1].splitlines()[0].split())
    told = [line for page in pages() for line in re.findall(r"docker run [^`\n]*", text(page))]
    assert len(told) >= 4
    for line in told:
        options, _, command = line.partition(" imagekin")
        assert set(re.findall(r"-p \S*:(\d+)", options)) <= exposed, line
        name, *arguments = shlex.split(command) or default
        assert name in COMMANDS, line
        unknown = set(re.findall(r"--[a-z-]+", " ".join(arguments)))
        for part in getattr(load_command(name), "commands", {name: load_command(name)}).values():
            unknown -= {option for one in part.params for option in one.opts}
        assert not unknown, line
    assert run_command([*default, "--print-config"]) == 0
    assert 'http-address = "0.0.0.0:8080"' in capsys.readouterr().out


def test_everything_that_it_copies_exists_and_is_let_through() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for line in re.findall(r"^COPY ([^-\n].*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert name in allowed


def test_the_base_image_is_pinned_to_a_patch_release() -> None:
    assert re.search(r"^ARG PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
