"""Models, collections and tokens are replaced while they are used, and no call fails."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from imagekin.serving.settings import Settings
from imagekin.v1 import admin_pb2, admin_pb2_grpc, collections_pb2, common_pb2, embedder_pb2, searcher_pb2
from imagekin.v1.collections_pb2_grpc import CollectionsStub
from imagekin.v1.embedder_pb2_grpc import EmbedderStub
from imagekin.v1.searcher_pb2_grpc import SearcherStub
from tests.artifacts import tiny_artifact
from tests.serving.process import serving
from tests.serving.running import Running, code, details, image, running, vector
from tests.waiting import wait_until


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file that the test may replace."""
    return tiny_artifact(tmp_path / "model.onnx")


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[Running]:
    """A server of that model with a data folder."""
    settings = Settings(address="127.0.0.1:0", models=(("tiny", model),), data_dir=tmp_path / "data")
    with running(settings) as server:
        yield server


def replace_model(path: Path, seed: int) -> None:
    """Put another model in place of the file, as a deployment does."""
    new = tiny_artifact(path.with_name("new.onnx"), seed=seed)
    os.replace(new, path)


def space(stub: EmbedderStub) -> str:
    return stub.Embed(embedder_pb2.EmbedRequest(images=[image(1)]), timeout=30).space


def test_a_reload_serves_what_the_file_holds_now(server: Running, model: Path) -> None:
    before = space(server.embedder)
    replace_model(model, 7)
    assert space(server.embedder) == before
    answer = server.admin.Reload(admin_pb2.ReloadRequest(), timeout=30)
    assert (list(answer.models), list(answer.collections)) == (["tiny"], [])
    assert space(server.embedder) != before


def test_a_broken_file_leaves_the_old_model_and_says_no_path(server: Running, model: Path) -> None:
    before = space(server.embedder)
    model.write_bytes(b"no model")
    with pytest.raises(grpc.RpcError) as failed:
        server.admin.Reload(admin_pb2.ReloadRequest(), timeout=30)
    assert code(failed.value) == grpc.StatusCode.FAILED_PRECONDITION
    message = details(failed.value).message
    assert "models could not be loaded anew" in message
    assert str(model) not in message
    assert space(server.embedder) == before


def test_unknown_names_are_refused_and_known_ones_reloaded_alone(server: Running) -> None:
    server.collections.CreateCollection(collections_pb2.CreateCollectionRequest(name="shop"))
    for request in (admin_pb2.ReloadRequest(models=["no"]), admin_pb2.ReloadRequest(collections=["no"])):
        with pytest.raises(grpc.RpcError) as failed:
            server.admin.Reload(request, timeout=30)
        assert code(failed.value) == grpc.StatusCode.NOT_FOUND
    answer = server.admin.Reload(admin_pb2.ReloadRequest(collections=["shop"]), timeout=30)
    assert (list(answer.models), list(answer.collections)) == ([], ["shop"])
    answer = server.admin.Reload(admin_pb2.ReloadRequest(models=["tiny"]), timeout=30)
    assert (list(answer.models), list(answer.collections)) == (["tiny"], [])


def test_a_collection_restored_from_a_copy_is_served_after_a_reload(server: Running, tmp_path: Path) -> None:
    server.collections.CreateCollection(collections_pb2.CreateCollectionRequest(name="shop"))
    items = [common_pb2.Item(key="a", vector=vector([1.0] * 16))]
    server.collections.Upsert(collections_pb2.UpsertRequest(collection="shop", items=items))
    folder = tmp_path / "data" / "collections" / "shop"
    server.admin.Reload(admin_pb2.ReloadRequest(), timeout=30)
    assert server.collections.Count(collections_pb2.CountRequest(collection="shop")).count == 1
    shutil.rmtree(folder)
    server.admin.Reload(admin_pb2.ReloadRequest(), timeout=30)
    with pytest.raises(grpc.RpcError) as failed:
        server.collections.Count(collections_pb2.CountRequest(collection="shop"))
    assert code(failed.value) == grpc.StatusCode.NOT_FOUND


def test_every_answer_is_of_one_model_while_it_is_replaced(server: Running, model: Path) -> None:
    expected: dict[str, bytes] = {}
    for seed in (7, 0):
        replace_model(model, seed)
        server.run(server.server.reload())
        answer = server.embedder.Embed(embedder_pb2.EmbedRequest(images=[image(1)]), timeout=30)
        expected[answer.space] = answer.results[0].vector
    assert len(set(expected.values())) == 2
    stopping = threading.Event()

    def embed() -> set[str]:
        seen: set[str] = set()
        while not stopping.is_set():
            answer = server.embedder.Embed(embedder_pb2.EmbedRequest(images=[image(1)] * 4), timeout=30)
            seen.add(answer.space)
            for result in answer.results:
                ours, right = (np.frombuffer(data, "<f4") for data in (result.vector, expected[answer.space]))
                np.testing.assert_allclose(ours, right, atol=1e-5)
        return seen

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(embed) for _ in range(4)]
        try:
            for number in range(10):
                replace_model(model, 7 if number % 2 else 0)
                server.admin.Reload(admin_pb2.ReloadRequest(models=["tiny"]), timeout=30)
        finally:
            stopping.set()
        assert set().union(*(future.result(60) for future in futures)) == set(expected)


def test_no_call_fails_while_everything_is_reloaded_again_and_again(tmp_path: Path) -> None:
    model = tiny_artifact(tmp_path / "model.onnx")
    arguments = f"models=(('tiny', Path({str(model)!r})),), data_dir=Path({str(tmp_path / 'data')!r})"
    failures: list[str] = []
    counts: dict[str, int] = {}
    stopping = threading.Event()

    def load(name: str, call: Callable[[int], object]) -> None:
        number = 0
        while not stopping.is_set():
            try:
                call(number)
            except grpc.RpcError as error:
                failures.append(f"{name}: {error}")
            number += 1
            counts[name] = number

    with serving(arguments) as process, grpc.insecure_channel(f"127.0.0.1:{process.port}") as channel:
        embedder, searcher, collections = EmbedderStub(channel), SearcherStub(channel), CollectionsStub(channel)
        collections.CreateCollection(
            collections_pb2.CreateCollectionRequest(name="shop"), wait_for_ready=True, timeout=20
        )

        def write(number: int) -> None:
            items = [common_pb2.Item(key=str(number), vector=vector([1.0 + number % 5] * 16))]
            collections.Upsert(collections_pb2.UpsertRequest(collection="shop", items=items), timeout=30)

        def embed(number: int) -> None:
            embedder.Embed(embedder_pb2.EmbedRequest(images=[image(at) for at in range(number % 8 + 1)]), timeout=30)

        def stream(_: int) -> None:
            batch = embedder_pb2.EmbedRequest(images=[image(1)] * 4)
            requests = (embedder_pb2.EmbedStreamRequest(batch=batch, tag=tag) for tag in range(20))
            assert len(list(embedder.EmbedStream(requests, timeout=30))) == 20

        def search(_: int) -> None:
            queries = [common_pb2.Query(image=image(1)), common_pb2.Query(vector=vector([1.0] * 16))]
            results = searcher.Search(
                searcher_pb2.SearchRequest(collection="shop", queries=queries), timeout=30
            ).results
            assert not any(result.HasField("error") for result in results)

        def count(_: int) -> None:
            collections.Count(collections_pb2.CountRequest(collection="shop"), timeout=30)

        loads = {"write": write, "embed": embed, "stream": stream, "search": search, "count": count}
        with ThreadPoolExecutor(len(loads)) as pool:
            futures = [pool.submit(load, name, call) for name, call in loads.items()]
            admin = admin_pb2_grpc.AdminStub(channel)
            for _ in range(8):
                admin.Reload(admin_pb2.ReloadRequest(), timeout=60)
                process.popen.send_signal(signal.SIGHUP)
                time.sleep(0.3)
            wait_until(lambda: len(counts) == len(loads) and min(counts.values()) > 8)
            stopping.set()
            for future in futures:
                future.result(60)
        assert failures == []
        answer = collections.Count(collections_pb2.CountRequest(collection="shop"), timeout=30)
        assert answer.count == counts["write"], "an acknowledged write is missing"
        process.popen.terminate()
        assert process.popen.wait(30) == 0
        lines = process.rest()
        assert len(lines) == 16
        assert all("reloaded 1 models and 1 collections" in line for line in lines)


def test_sighup_rereads_the_tokens(model: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"

    def allow(token: str) -> None:
        tokens.write_text(f'[[token]]\nname = "a"\nscope = "read"\ntoken = "{token}"\n')
        tokens.chmod(0o600)

    def status(stub: EmbedderStub, token: str) -> grpc.StatusCode:
        metadata = (("authorization", f"Bearer {token}"),)
        request = embedder_pb2.EmbedRequest(images=[image(1)])
        return stub.Embed.future(request, metadata=metadata, wait_for_ready=True, timeout=20).code()

    old, new = "old-0123456789abcdef", "new-0123456789abcdef"
    allow(old)
    arguments = f"models=(('tiny', Path({str(model)!r})),), tokens_file=Path({str(tokens)!r})"
    with serving(arguments) as process, grpc.insecure_channel(f"127.0.0.1:{process.port}") as channel:
        stub = EmbedderStub(channel)
        assert status(stub, old) == grpc.StatusCode.OK
        allow(new)
        process.popen.send_signal(signal.SIGHUP)
        assert "reloaded" in (process.line() or "")
        assert status(stub, old) == grpc.StatusCode.UNAUTHENTICATED
        assert status(stub, new) == grpc.StatusCode.OK
        tokens.write_text("no tokens")
        process.popen.send_signal(signal.SIGHUP)
        assert "tokens could not be loaded anew" in (process.line() or "")
        assert status(stub, new) == grpc.StatusCode.OK


def count(server: Running) -> int | None:
    """Return the number of items in the collection, None when there is none."""
    call = server.collections.Count.future(collections_pb2.CountRequest(collection="shop"), timeout=20)
    if call.code() == grpc.StatusCode.NOT_FOUND:
        return None
    return call.result().count


def test_a_replica_follows_the_writer_and_refuses_to_write(server: Running, model: Path, tmp_path: Path) -> None:
    settings = Settings(address="127.0.0.1:0", models=(("tiny", model),), data_dir=tmp_path / "data", read_only=True)
    create = collections_pb2.CreateCollectionRequest(name="shop")
    with running(settings) as replica:
        for number in range(5):
            if not number:
                server.collections.CreateCollection(create)
            items = [common_pb2.Item(key=str(number), label="x", image=image(number))]
            server.collections.Upsert(collections_pb2.UpsertRequest(collection="shop", items=items))
            assert replica.collections.Count(collections_pb2.CountRequest(collection="shop")).count == number + 1
            query = common_pb2.Query(image=image(number))
            found = replica.searcher.Search(searcher_pb2.SearchRequest(collection="shop", queries=[query], k=1))
            assert found.results[0].neighbours[0].key == str(number)
        writes: list[Callable[[], object]] = [
            lambda: replica.collections.CreateCollection(collections_pb2.CreateCollectionRequest(name="new")),
            lambda: replica.collections.DropCollection(collections_pb2.DropCollectionRequest(name="shop")),
            lambda: replica.collections.Delete(collections_pb2.DeleteRequest(collection="shop", keys=["0"])),
            lambda: replica.collections.Upsert(collections_pb2.UpsertRequest(collection="shop", items=items)),
        ]
        for write in writes:
            with pytest.raises(grpc.RpcError) as failed:
                write()
            assert code(failed.value) == grpc.StatusCode.FAILED_PRECONDITION
            assert "replica" in details(failed.value).message
        server.collections.DropCollection(collections_pb2.DropCollectionRequest(name="shop"))
        wait_until(lambda: count(replica) is None)
        server.collections.CreateCollection(create)
        assert count(replica) == 0
        # Dropped and made anew between two looks.
        server.collections.DropCollection(collections_pb2.DropCollectionRequest(name="shop"))
        server.collections.CreateCollection(create)
        server.collections.Upsert(collections_pb2.UpsertRequest(collection="shop", items=items))
        wait_until(lambda: count(replica) == 1)
