"""README and guide keep their word: every command in them runs, in its order, on smaller data of the same kind."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from reference.pages import generated_paths
from tests.data import shared_data
from tests.e2e.processes import quiet_environment, running_server
from tests.project.fences import ROOT, fences, text
from tests.project.shell import run_bash

README = "README.md"
# The pages that a reader follows after the tour, with what it has left in the folder.
GUIDE = ("docs/tutorials/tour.md", "docs/reference/sources.md", "docs/how-to/encoders.md")

# Commands that other tests run, because they cannot be run inside this one.
ELSEWHERE = {
    "make demo": "tests/e2e/test_demo.py runs the demo; .ci/run runs make's set-up",
    "make test": "this is it",
    "make check": ".ci/run",
    "pip install '.[cpu,train]'": ".ci/run installs it with the development tools",
}


def commands(*pages: str) -> str:
    """Return the commands of pages, as a script."""
    lines = [line for page in pages for block in fences(page, "bash") for line in block.text.splitlines()]
    return "\n".join(line for line in lines if line.split("  #")[0].strip() not in ELSEWHERE)


def subset(name: str, target: Path, *, classes: int, per_class: int) -> None:
    """Copy the first images of the first classes of a shared archive into a smaller one of the same form."""
    taken: dict[str, int] = {}
    mode = "w:gz" if target.name.endswith("gz") else "w"
    with tarfile.open(shared_data(name)) as source, tarfile.open(target, mode) as small:  # type: ignore[call-overload]
        for member in source:
            parts = member.name.removeprefix("./").split("/")
            if not member.isfile() or len(parts) < 2:
                continue
            if parts[0] not in taken and len(taken) == classes:
                break
            if taken.setdefault(parts[0], 0) < per_class:
                taken[parts[0]] += 1
                small.addfile(member, source.extractfile(member))
    assert len(taken) == classes


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the README's reader has downloaded, only less of it."""
    folder = tmp_path_factory.mktemp("readme")
    subset("grocery-train.tar", folder / "grocery-train.tar", classes=5, per_class=4)
    subset("grocery-test.tar", folder / "grocery-test.tar", classes=5, per_class=4)
    subset("cifar10-train.tar.gz", folder / "cifar10-train.tar.gz", classes=4, per_class=20)
    subset("cifar10-test.tar.gz", folder / "cifar10-test.tar.gz", classes=4, per_class=10)
    subset("omniglot.tar.gz", folder / "omniglot.tar.gz", classes=1, per_class=25)
    (folder / "configs").symlink_to(ROOT / "configs")
    for name, target in (("grocery-train.tar", "photos"), ("grocery-test.tar", "held-out")):
        with tarfile.open(folder / name) as archive:
            archive.extractall(folder / "first" / target, filter="data")
    with tarfile.open(folder / "grocery-test.tar") as archive:
        member = next(member for member in archive if member.isfile())
        content = archive.extractfile(member)
        assert content is not None
        data = content.read()
    for place in (folder, folder / "first"):
        (place / "photo.jpg").write_bytes(data)
    return folder


def on_a_free_port(script: str) -> str:
    """Return the script with a server on a free port instead of the one that the README names.

    What listens on that one is not the test's own: it may be a user's server, with a user's collections.
    """
    waits = "until test -s port || ! kill -0 $!; do sleep 0.05; done; export IMAGEKIN_ADDRESS=127.0.0.1:$(cat port)"
    script, servers = re.subn(
        r"^(imagekin serve .*)&$", rf"\1--address 127.0.0.1:0 --port-file port &\n{waits}", script, flags=re.M
    )
    assert servers == 1
    script = script.replace("127.0.0.1:50051", '"$IMAGEKIN_ADDRESS"').replace("127.0.0.1:8080", "127.0.0.1:0")
    assert "50051" not in script
    return script


def bash(script: str, folder: Path) -> tuple[int, str]:
    """Run a script as a reader's shell would; return its status and what it said."""
    # Two threads that wait for each other lose tenfold on a machine that is busy with other things.
    return run_bash(script, folder, {"IMAGEKIN_TRAIN_THREADS": "1"})


def test_the_first_commands_give_an_encoder_a_service_and_a_better_encoder(workplace: Path) -> None:
    folder = workplace / "first"
    status, said = bash(on_a_free_port(commands(README)), folder)
    assert status == 0, said
    assert "photo.jpg\t1\t" in said
    run_python(README, folder, folder / "model.onnx")


def test_the_guide_runs_from_its_first_command_to_its_last(workplace: Path) -> None:
    script = commands(*GUIDE)
    assert "imagekin train" in script
    assert "imagekin classify" in script
    status, said = bash(on_a_free_port(script), workplace)
    assert status == 0, said
    # The commands have left a model and a collection in the folder.
    run_python("docs/reference/python.md", workplace, workplace / "run" / "model.onnx")


def run_python(page: str, folder: Path, model: Path) -> None:
    """Run a page's Python examples against a server of a folder."""
    examples = "\n".join(block.text for block in fences(page, "python"))
    assert '"localhost:50051"' in examples
    with running_server(model, folder / "data") as server:
        (folder / "example.py").write_text(examples.replace("localhost:50051", server.address))
        status, said = bash("python example.py", folder)
    assert status == 0, said


def test_every_command_of_the_program_is_in_the_readme() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "imagekin", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=quiet_environment(),
    ).stdout
    names = re.findall(r"^[│ ]+([a-z]+)  ", listed, re.MULTILINE)
    assert {"train", "serve", "index"} <= set(names)
    missing = [name for name in names if f"imagekin {name}" not in text(README)]
    assert not missing


def test_the_readme_is_short() -> None:
    assert len(text(README).split()) <= 700


def test_links_and_anchors_lead_somewhere() -> None:
    lost = []
    written_at_build = {ROOT / "docs" / name for name in generated_paths()}
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:|<)([^)\s]+)\)", path.read_text(encoding="utf-8")):
            name, _, anchor = target.partition("#")
            page = Path(os.path.normpath(path.parent / name)) if name else path
            if page in written_at_build:
                continue  # building the site strictly follows these
            if not page.exists() or (anchor and anchor not in anchors(page)):
                lost.append(f"{path.relative_to(ROOT)}: {target}")
    assert not lost


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the forges make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
