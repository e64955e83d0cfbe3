"""The server's life as its operator sees it: start, refuse what cannot work, finish what it began, end."""

import socket
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest

from imagekin import Client, Item
from imagekin.errors import FailedPreconditionError, ImagekinError
from tests.artifacts import tiny_artifact
from tests.e2e.pictures import COLOURS, class_folders, picture
from tests.e2e.processes import run, running_server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small artifact."""
    return tiny_artifact(tmp_path_factory.mktemp("model") / "model.onnx")


def test_it_indexes_searches_and_classifies_and_remembers_after_a_restart(model: Path, tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", per_class=10)
    query = picture(COLOURS["green"], 999)
    with running_server(model, tmp_path / "data") as server:
        done = run("index", "shop", str(photos), "--model", str(model), "--address", server.address)
        assert done.returncode == 0, done.stderr
        with Client(server.address) as client:
            before = [(found.key, found.label) for found in client.search([query], k=5, collection="shop")[0]]
        assert server.stop() == 0
    assert [label for _, label in before] == ["green"] * 5
    with running_server(model, tmp_path / "data") as server, Client(server.address) as client:
        again = client.search([query], k=5, collection="shop")[0]
        assert [(found.key, found.label) for found in again] == before
        (prediction,) = client.classify([query], collection="shop")
        assert prediction.label == "green"
        assert client.count("shop") == 30


def test_sigterm_finishes_what_is_in_flight(model: Path, tmp_path: Path) -> None:
    images = [picture(COLOURS["red"], seed, side=256) for seed in range(200)]
    port_file = tmp_path / "metrics-port"
    options = ("--metrics-address", "127.0.0.1:0", "--metrics-port-file", str(port_file))
    with running_server(model, tmp_path / "data", *options) as server, Client(server.address) as client:
        client.embed(images[:1])
        metrics = f"http://127.0.0.1:{port_file.read_text().strip()}/metrics"
        answers: list[np.ndarray] = []
        call = threading.Thread(target=lambda: answers.append(client.embed(images[:60])))
        call.start()
        in_flight = False
        while call.is_alive() and not in_flight:
            with urllib.request.urlopen(metrics, timeout=20) as answer:
                in_flight = b"imagekin_calls_in_flight 1.0" in answer.read()
        assert server.stop() == 0
        call.join(30)
    assert [answer.shape[0] for answer in answers] == [60]


def test_a_killed_server_loses_no_acknowledged_write(model: Path, tmp_path: Path) -> None:
    acknowledged: list[str] = []
    with running_server(model, tmp_path / "data") as server, Client(server.address, timeout=5) as client:
        client.create_collection("shop")

        def write() -> None:
            for number in range(10_000):
                key = f"{number:05}"
                try:
                    client.upsert("shop", [Item(key, vector=np.full(16, 1 + number % 7, np.float32))])
                except ImagekinError:
                    return
                acknowledged.append(key)

        writer = threading.Thread(target=write)
        writer.start()
        while len(acknowledged) < 50:
            time.sleep(0.001)
        server.process.kill()
        writer.join(60)
    with running_server(model, tmp_path / "data") as server, Client(server.address) as client:
        found = client.get("shop", acknowledged)
        assert [item.key for item in found if item is not None] == acknowledged


def test_a_second_writer_is_refused_in_one_line(model: Path, tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", per_class=2)
    with running_server(model, tmp_path / "data") as server:
        index = ("index", "shop", str(photos), "--model", str(model))
        assert run(*index, "--address", server.address).returncode == 0
        second = run(*index, "--data-dir", str(tmp_path / "data"))
    assert second.returncode == 1
    assert "--address" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1


def test_a_model_of_another_space_is_refused(model: Path, tmp_path: Path) -> None:
    other = tiny_artifact(tmp_path / "other.onnx", seed=1)
    photos = class_folders(tmp_path / "photos", per_class=2)
    assert (
        run("index", "shop", str(photos), "--model", str(model), "--data-dir", str(tmp_path / "data")).returncode == 0
    )
    second = run("index", "shop", str(photos), "--model", str(other), "--data-dir", str(tmp_path / "data"))
    assert second.returncode == 1
    assert "space" in second.stderr
    with running_server(other, tmp_path / "data") as server, Client(server.address) as client:
        with pytest.raises(FailedPreconditionError, match="space"):
            client.search([picture(COLOURS["red"], 1)], collection="shop")
        assert client.embed([picture(COLOURS["red"], 1)]).shape == (1, 16)


def test_a_port_in_use_and_an_open_address_are_refused_in_one_line(model: Path, tmp_path: Path) -> None:
    serve = ("serve", "--model", str(model), "--data-dir", str(tmp_path / "data"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        in_use = run(*serve, "--address", f"127.0.0.1:{taken.getsockname()[1]}")
    open_address = run(*serve, "--address", "0.0.0.0:0")
    for refused in (in_use, open_address):
        assert refused.returncode in (1, 2)
        assert len(refused.stderr.strip().splitlines()) == 1
    assert "--allow-insecure" in open_address.stderr


def test_health_turns_not_serving_only_after_the_end(model: Path, tmp_path: Path) -> None:
    with running_server(model, tmp_path / "data") as server:
        assert run("health", "--address", server.address).returncode == 0
        address = server.address
        assert server.stop() == 0
    assert run("health", "--address", address).returncode == 1
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=0.5)
