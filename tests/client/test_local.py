"""A data folder answers without a server that others could reach, with the methods and errors of a client."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagekin import AsyncClient, Client, Item
from imagekin.cli import main as cli
from imagekin.client.local import LocalServer
from imagekin.errors import FailedPreconditionError, ImagekinError, NotFoundError
from tests.artifacts import tiny_artifact
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("model") / "model.onnx")


def pictures(folder: Path) -> list[Path]:
    folder.mkdir()
    for number in range(4):
        Image.effect_noise((16, 16), 20.0 * (number + 1)).convert("RGB").save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def filled(data: Path, model: Path, images: list[Path]) -> None:
    with Client.local(data, model=model) as client:
        space = client.models()[0].space
        client.create_collection("shop", space=space, dim=16)
        vectors = client.embed(images)
        client.upsert(
            "shop", [Item(key=path.name, vector=vector) for path, vector in zip(images, vectors, strict=True)]
        )


def test_what_one_client_writes_the_next_finds(tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = pictures(tmp_path / "photos")
    filled(tmp_path / "data", model, images)
    with Client.local(tmp_path / "data", model={"first": model}, read_only=True) as client:
        assert client.models()[0].name == "first"
        assert [found[0].key for found in client.search(images, collection="shop", k=1)] == [one.name for one in images]
        with pytest.raises(NotFoundError):
            client.count("none")
        with pytest.raises(ImagekinError, match="read-only"):
            client.delete("shop", keys=["0.png"])
        folder = Path(client.address.removeprefix("unix:")).parent
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()

    async def asked() -> int:
        async with await AsyncClient.local(tmp_path / "data") as client:
            return await client.count("shop")

    assert asyncio.run(asked()) == 4
    capfd.readouterr()
    ask = ["-c", "shop", "-d", str(tmp_path / "data"), "-m", str(model)]
    assert cli.run(["search", *ask, "-k", "1", str(images[2])]) == 0
    assert capfd.readouterr().out.split("\t")[:3] == ["2.png", "1", "2.png"]
    assert cli.run(["search", "-c", "shop", "-d", str(tmp_path / "none"), "-m", str(model), str(images[2])]) == 2
    assert "no folder" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("data", "model", "reason"), [("file", None, "data folder"), ("data", "none.onnx", "no model")]
)
def test_what_cannot_be_opened_is_said(tmp_path: Path, data: str, model: str | None, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPreconditionError, match=reason):
        Client.local(tmp_path / data, model=model)


def test_one_process_writes(tmp_path: Path) -> None:
    with Client.local(tmp_path / "data") as first:
        first.create_collection("shop", space="own", dim=2)
        item = Item(key="a", vector=np.array([1.0, 0.0], np.float32))
        first.upsert("shop", [item])
        with pytest.raises(ImagekinError, match="open for writing elsewhere"):  # noqa: SIM117
            with Client.local(tmp_path / "data") as second:
                second.upsert("shop", [item])
        with Client.local(tmp_path / "data", read_only=True) as reader:
            assert reader.count("shop") == 1


def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from imagekin import Client; c = Client.local(sys.argv[1]); "
        "print(c._server._process.pid, flush=True); time.sleep(100)"
    )
    started = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "data")], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    served = int(started.stdout.readline())
    started.send_signal(signal.SIGKILL)
    started.communicate()
    wait_until(lambda: not _runs(served))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]


def test_vectors_need_no_model(tmp_path: Path) -> None:
    with Client.local(tmp_path / "data") as client:
        client.create_collection("shop", space="own", dim=2)
        client.upsert("shop", [Item(key="a", vector=np.array([1.0, 0.0], np.float32))])
        assert client.search(vectors=np.array([[1.0, 0.1]], np.float32), collection="shop")[0][0].key == "a"


def test_a_server_whose_socket_is_there_is_waited_for_until_it_listens(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("s")
    monkeypatch.chdir(folder)  # because the address of a socket is short
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    server = LocalServer(process, Path())
    waited = threading.Event()

    def wait() -> None:
        server._wait()
        waited.set()

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.bind("socket")
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not waited.wait(0.3)
        bound.listen()
        assert waited.wait(60)
        waiting.join()
    process.communicate(b"\n", timeout=60)
