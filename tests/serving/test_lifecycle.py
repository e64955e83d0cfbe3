"""The life of the real process: one line when it is ready, a drain on SIGTERM, one line when it cannot start."""

import contextlib
import io
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import PIL.Image
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from imagekin.machine import cores
from imagekin.v1 import collections_pb2, collections_pb2_grpc, embedder_pb2, embedder_pb2_grpc
from imagekin.v1.common_pb2 import Image, Item
from tests.serving.process import ROOT, Hold, serving, started
from tests.serving.running import code, image
from tests.waiting import wait_until


@pytest.fixture
def models(model_path: Path) -> str:
    """The argument that serves the tiny model."""
    return f"models=(('tiny', Path({str(model_path)!r})),)"


def slow_request(each: int = 8) -> embedder_pb2.EmbedRequest:
    """Return a request of few bytes and much work: large images of one colour, so many for each core."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (4500, 4500)).save(file, "PNG")
    return embedder_pb2.EmbedRequest(images=[Image(data=file.getvalue())] * min(each * cores(), 64))


def until_draining(stub: embedder_pb2_grpc.EmbedderStub) -> None:
    """Return once the server takes no further calls."""
    request = embedder_pb2.ListModelsRequest()
    wait_until(lambda: stub.ListModels.future(request, timeout=20).code() == grpc.StatusCode.UNAVAILABLE)


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    return Hold(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_in_flight_and_exits_with_0(models: str, number: signal.Signals, hold: Hold) -> None:
    with serving(models, hold.prelude) as process, grpc.insecure_channel(f"127.0.0.1:{process.port}") as channel:
        stub = embedder_pb2_grpc.EmbedderStub(channel)
        hold.begin()
        request = embedder_pb2.EmbedRequest(images=[image(seed) for seed in range(16)])
        in_flight = stub.Embed.future(request, wait_for_ready=True, timeout=60)
        hold.wait()
        process.popen.send_signal(number)
        until_draining(stub)
        assert not in_flight.done()
        hold.release()
        assert len(in_flight.result().results) == len(request.images)
        assert all(result.vector for result in in_flight.result().results)
        assert process.popen.wait(20) == 0
        assert process.rest() == []


def test_an_idle_stream_does_not_hold_up_the_drain(models: str) -> None:
    with (
        serving(f"{models}, drain_seconds=600.0") as process,
        grpc.insecure_channel(f"127.0.0.1:{process.port}") as channel,
    ):
        stub = embedder_pb2_grpc.EmbedderStub(channel)
        done = False

        def requests() -> Iterator[embedder_pb2.EmbedStreamRequest]:
            yield embedder_pb2.EmbedStreamRequest(batch=embedder_pb2.EmbedRequest(images=[image()]), tag=5)
            while not done:
                time.sleep(0.01)

        responses = stub.EmbedStream(requests(), timeout=60)
        assert next(responses).tag == 5
        process.popen.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as failed:
            next(responses)
        assert code(failed.value) == grpc.StatusCode.UNAVAILABLE
        assert process.popen.wait(60) == 0
        done = True


def test_a_stream_at_work_answers_what_it_has_read_before_it_ends(models: str) -> None:
    with serving(models) as process, grpc.insecure_channel(f"127.0.0.1:{process.port}") as channel:
        stub = embedder_pb2_grpc.EmbedderStub(channel)
        batch = slow_request(3)
        requests = (embedder_pb2.EmbedStreamRequest(batch=batch, tag=tag) for tag in range(1000))
        responses = stub.EmbedStream(requests, timeout=60)
        assert next(responses).tag == 0
        process.popen.send_signal(signal.SIGTERM)
        tags = [0]
        with contextlib.suppress(grpc.RpcError):
            tags.extend(response.tag for response in responses)
        assert responses.code() == grpc.StatusCode.UNAVAILABLE
        assert tags == list(range(len(tags)))
        assert 1 < len(tags) < 1000
        assert process.popen.wait(20) == 0


@pytest.mark.parametrize("cut_by", ["its time", "a second signal"])
def test_a_drain_is_cut_by_its_time_and_by_a_second_signal(models: str, hold: Hold, cut_by: str) -> None:
    seconds = 0.2 if cut_by == "its time" else 600.0
    with serving(f"{models}, drain_seconds={seconds}", hold.prelude) as process:
        with grpc.insecure_channel(f"127.0.0.1:{process.port}") as channel:
            stub = embedder_pb2_grpc.EmbedderStub(channel)
            hold.begin()
            request = embedder_pb2.EmbedRequest(images=[image()])
            call = stub.Embed.future(request, wait_for_ready=True, timeout=60)
            hold.wait()
            process.popen.send_signal(signal.SIGTERM)
            if cut_by == "a second signal":
                until_draining(stub)
                process.popen.send_signal(signal.SIGTERM)
            assert call.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        hold.release()
        assert process.popen.wait(60) == 0


def test_acknowledged_writes_survive_the_drain(models: str, tmp_path: Path) -> None:
    arguments = f"{models}, data_dir=Path({str(tmp_path)!r})"
    with serving(arguments) as process, grpc.insecure_channel(f"127.0.0.1:{process.port}") as channel:
        stub = collections_pb2_grpc.CollectionsStub(channel)
        stub.CreateCollection(collections_pb2.CreateCollectionRequest(name="shop"), timeout=20)

        def write(number: int) -> grpc.StatusCode:
            item = Item(key=str(number), image=image(number))
            request = collections_pb2.UpsertRequest(collection="shop", items=[item])
            return stub.Upsert.future(request, timeout=20).code()

        with ThreadPoolExecutor(8) as pool:
            writes = [pool.submit(write, number) for number in range(300)]
            wait_until(lambda: sum(each.done() for each in writes) >= 20)
            process.popen.send_signal(signal.SIGTERM)
            codes = [each.result() for each in writes]
        assert process.popen.wait(20) == 0
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    with serving(arguments) as process, grpc.insecure_channel(f"127.0.0.1:{process.port}") as channel:
        stub = collections_pb2_grpc.CollectionsStub(channel)
        assert stub.Count(collections_pb2.CountRequest(collection="shop"), timeout=20).count >= codes.count(
            grpc.StatusCode.OK
        )


def test_the_port_file_is_there_once_the_server_is_ready(models: str, tmp_path: Path) -> None:
    with serving(f"{models}, port_file=Path({str(tmp_path / 'port')!r})") as process:
        assert int((tmp_path / "port").read_text()) == process.port
        assert [path.name for path in tmp_path.iterdir()] == ["port"]


def test_a_taken_port_is_one_clear_error(models: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with started(f"address='127.0.0.1:{port}', {models}") as process:
            lines = process.rest()
            assert process.popen.wait(20) == 1
    assert lines[-1].startswith(f"imagekin.errors.FailedPreconditionError: cannot listen on 127.0.0.1:{port} (address")
    assert lines[0].startswith("Traceback"), "gRPC wrote its own lines"
    assert not any("serving on" in line for line in lines)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_this_machine_is_one_clear_error(models: str, host: str) -> None:
    with started(f"address='{host}:0', allow_insecure=True, {models}") as process:
        lines = process.rest()
        assert process.popen.wait(20) == 1
    assert f"cannot listen on {host}:0" in lines[-1]
    assert lines[0].startswith("Traceback"), "gRPC wrote its own lines"


def test_a_second_server_cannot_share_the_port(models: str) -> None:
    with serving(models) as process, started(f"address='127.0.0.1:{process.port}', {models}") as second:
        assert second.popen.wait(60) == 1


def test_a_model_that_is_none_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with started(f"address='127.0.0.1:0', models=(('bad', Path({str(tmp_path / 'bad.onnx')!r})),)") as process:
        lines = process.rest()
        assert process.popen.wait(20) == 1
    assert "InvalidArgumentError" in lines[-1]
    assert not any("serving on" in line for line in lines)


def test_serving_never_imports_torch() -> None:
    program = "import sys, imagekin.serving.server; print(sorted({'torch', 'onnx', 'sklearn'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


STARTING = """
import time
from imagekin.serving.embedding.models import Models
opening = Models.open
def slow(*given):
    print("opening", file=sys.stderr, flush=True)
    time.sleep(1)
    return opening(*given)
Models.open = slow
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_ends_it_without_an_error(models: str, number: signal.Signals) -> None:
    with started(f"address='127.0.0.1:0', {models}", STARTING) as process:
        assert process.line() == "opening"
        process.popen.send_signal(number)
        assert process.popen.wait(60) == 0
        assert process.rest() == []


def test_a_signal_before_there_is_a_server_ends_the_command_without_an_error() -> None:
    program = (
        "import os, signal; from imagekin.cli.serve import _leave; "
        "signal.signal(signal.SIGTERM, _leave); os.kill(os.getpid(), signal.SIGTERM)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0


def test_the_limit_of_open_files_is_raised_and_told(models: str) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    lower = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(7)[1]))"
    with serving(models, lower) as process:
        assert f"raised the limit of open files from 256 to {hard}" in (process.line() or "")
        limits = Path(f"/proc/{process.popen.pid}/limits").read_text()
        assert re.search(rf"Max open files\s+{hard}\s", limits)


def test_a_server_without_its_data_folder_is_not_healthy_until_it_is_back(models: str, tmp_path: Path) -> None:
    data, away = tmp_path / "data", tmp_path / "away"
    with (
        serving(f"{models}, data_dir=Path({str(data)!r})") as process,
        grpc.insecure_channel(f"127.0.0.1:{process.port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)

        def status() -> int:
            return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status)

        assert status() == health_pb2.HealthCheckResponse.SERVING
        data.rename(away)
        wait_until(lambda: status() == health_pb2.HealthCheckResponse.NOT_SERVING)
        assert "cannot be had (no such file or directory)" in (process.line() or "")
        data.mkdir()
        time.sleep(1.5)
        assert status() == health_pb2.HealthCheckResponse.NOT_SERVING
        data.rmdir()
        away.rename(data)
        wait_until(lambda: status() == health_pb2.HealthCheckResponse.SERVING)
