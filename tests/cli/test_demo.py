"""The demo leaves nothing behind but its own folder; that it works is tested end to end."""

from pathlib import Path

import pytest

from imagekin import Client
from imagekin.cli import demo_run
from imagekin.errors import FailedPreconditionError, ImagekinError, UnavailableError
from tests.artifacts import tiny_artifact


def test_the_demo_leaves_folders_of_others_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FailedPreconditionError, match="holds other files"):
        demo_run.run(tmp_path / "mine", as_json=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_the_demo_replaces_its_own_folder(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    demo_run.prepare(out)
    (out / "old").touch()
    demo_run.prepare(out)
    assert not (out / "old").exists()


@pytest.mark.parametrize("ending", [KeyboardInterrupt, ImagekinError("failed")])
def test_the_server_is_stopped_however_the_demo_ends(tmp_path: Path, ending: BaseException) -> None:
    model = tiny_artifact(tmp_path / "model.onnx")
    addresses = []
    with pytest.raises((KeyboardInterrupt, ImagekinError)):  # noqa: PT012, SIM117  what is raised inside is the point
        with demo_run.served(["--model", str(model), "--data-dir", str(tmp_path / "data")], tmp_path) as client:
            assert client.health()
            addresses.append(client.address)
            raise ending
    with Client(addresses[0], timeout=0.5) as client, pytest.raises(UnavailableError):
        client.health()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"did not start: .*none\.onnx"):  # noqa: SIM117
        with demo_run.served(["--model", str(tmp_path / "none.onnx")], tmp_path):
            pass
