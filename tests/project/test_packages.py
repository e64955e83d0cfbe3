"""A wheel, a source distribution and an editable install: each brings one importable name, and all of the code."""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.e2e.processes import quiet_environment
from tests.project.packages import FOLDERS, application, build, checkout

Contents = dict[str, bytes]
# Code, the files of the page, and the description of HTTP.
KINDS = (".py", ".pyi", ".typed", ".html", ".css", ".js", ".svg", ".json")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def wheel_file(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that was built from the checkout."""
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> Contents:
    """The files of the wheel."""
    return contents(wheel_file)


def contents(wheel: Path) -> Contents:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_one_importable_name(wheel: Contents) -> None:
    tops = {name.split("/")[0] for name in wheel}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"imagekin", info}
    assert info.startswith("imagekin-")


def test_the_wheel_has_every_file_that_the_checkout_imports(source: Path, wheel: Contents) -> None:
    wanted = {
        f"imagekin/{path.relative_to(source)}".replace("imagekin/imagekin/", "imagekin/")
        for folder in ("imagekin", *FOLDERS)
        for path in (source / folder).rglob("*")
        if path.is_file() and path.suffix in KINDS and not path.is_relative_to(source / "build")
    }
    assert len(wanted) > 150
    assert not wanted - wheel.keys()
    assert not {name for name in wheel if name.startswith("imagekin/")} - wanted
    assert all(wheel[name] == (source / name).read_bytes() for name in wanted)


def test_the_package_index_would_take_the_wheel(wheel_file: Path, wheel: Contents) -> None:
    for command in (["twine", "check", "--strict"], ["check_wheel_contents", "--no-config"]):
        done = subprocess.run(
            [sys.executable, "-m", *command, str(wheel_file)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "imagekin/py.typed" in wheel


def test_the_source_distribution_makes_the_same_wheel(source: Path, wheel: Contents, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", source, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = contents(build("wheel", unpacked, tmp_path))
    assert again.keys() == wheel.keys()
    assert {name for name in wheel if again[name] != wheel[name]} == set()


@pytest.fixture(scope="module")
def editable(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment in which the checkout is installed to be edited.

    What it depends on is taken from this environment, whose own installation of the project does not count there.
    """
    folder = tmp_path_factory.mktemp("editable")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    python = folder / "bin" / "python"
    libraries = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (libraries / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [str(python), "-m", "pip", "--quiet", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    command = [*pip, "--ignore-installed", "--editable", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    return python


def environment() -> dict[str, str]:
    """Return an environment in which nothing of this checkout is found."""
    return {name: value for name, value in quiet_environment().items() if name != "PYTHONPATH"}


def test_an_editable_install_has_the_command_beside_an_applications_own_folders(
    editable: Path, source: Path, tmp_path: Path
) -> None:
    app = application(tmp_path / "app")
    where = "import imagekin.index, imagekin.training; print(imagekin.index.__file__)"
    own = "import cli, client, encoder, index, serving, sources, training; assert index.OWNER == 'application'"
    for command, said in (
        ([str(editable), "-m", "imagekin", "version"], "imagekin"),
        ([str(editable.with_name("imagekin")), "version"], "imagekin"),
        ([str(editable), "-c", f"{own}; {where}"], str(source / "imagekin" / "index" / "__init__.py")),
        ([str(editable), "-m", "torch.distributed.run", "-m", "imagekin.training", "--help"], "--projection-dim"),
    ):
        done = subprocess.run(command, cwd=app, capture_output=True, text=True, timeout=120, env=environment())
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
