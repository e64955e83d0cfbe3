"""Both clients keep the same promises: order, errors in their places, retries, tokens, clear failures."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagekin import AsyncClient, Client, Item
from imagekin.client.calls import MessageLimits
from imagekin.client.retries import RetryPolicy
from imagekin.errors import (
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    ImagekinError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from imagekin.types import Outcome
from tests.client.scripted import BAD, Script, embedding, scripted_server, status
from tests.client.twins import Blocking

QUICK = RetryPolicy(first=0.01, longest=0.05)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def address(script: Script) -> Iterator[str]:
    with scripted_server(script) as bound:
        yield bound


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def client(kind: Any, address: str) -> Iterator[Any]:
    with kind(address, timeout=10.0, retry=QUICK, limits=MessageLimits(items=8, bytes=2**20)) as connected:
        yield connected


def test_embeddings_come_in_the_order_of_the_images_over_many_messages(client: Any, script: Script) -> None:
    images = [f"image {number}".encode() for number in range(100)]
    vectors = client.embed(images)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.stack([embedding(image) for image in images]))
    assert sum(script.batches) == 100
    assert max(script.batches) == 8


def test_messages_are_cut_by_bytes_too(client: Any, script: Script) -> None:
    images = [bytes([number]) * 600_000 for number in range(4)]
    client.embed(images)
    assert script.batches == [1, 1, 1, 1]


def test_several_messages_are_under_way_at_once_and_no_more_than_asked(kind: Any, address: str, script: Script) -> None:
    script.gate.clear()
    threading.Timer(0.5, script.gate.set).start()
    with kind(address, in_flight=3, limits=MessageLimits(items=1)) as client:
        client.embed([str(number).encode() for number in range(9)])
    assert script.most_at_once == 3


def test_a_bad_image_raises_with_its_place(client: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"images\[9\]: no image") as caught:
        client.embed([b"good"] * 9 + [BAD])
    assert caught.value.field == "images.data"


def test_errors_are_returned_in_their_places(client: Any, tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    good.write_bytes(b"good")
    results = client.embed([good, BAD, tmp_path / "none.png", b"fine"], errors="return")
    assert [type(result) for result in results] == [np.ndarray, InvalidArgumentError, NotFoundError, np.ndarray]
    np.testing.assert_array_equal(results[0], embedding(b"good"))
    np.testing.assert_array_equal(results[3], embedding(b"fine"))


def test_a_batch_of_nothing_but_unreadable_files_costs_no_call(client: Any, script: Script, tmp_path: Path) -> None:
    (result,) = client.embed([tmp_path / "none.png"], errors="return")
    assert isinstance(result, NotFoundError)
    assert script.calls == []
    assert client.embed([]).shape == (0, 0)


def test_a_single_image_is_a_series_of_one(client: Any) -> None:
    assert client.embed(b"one").shape == (1, 4)
    assert client.embed(np.zeros((5, 6, 3), np.uint8)).shape == (1, 4)
    assert client.embed(np.zeros((2, 5, 6, 3), np.uint8)).shape == (2, 4)


def test_search_takes_images_vectors_or_keys_and_exactly_one_of_them(client: Any) -> None:
    assert client.search([b"a"], collection="c", k=2)[0][1].key == "near a"
    assert client.search(keys=["b"], collection="c")[0][0].key == "near b"
    assert len(client.search(vectors=np.eye(3), collection="c")) == 3
    assert len(client.search(vectors=[0.0, 1.0], collection="c")) == 1
    with pytest.raises(InvalidArgumentError, match="exactly one"):
        client.search([b"a"], keys=["b"], collection="c")
    with pytest.raises(InvalidArgumentError, match="exactly one"):
        client.classify(collection="c")
    with pytest.raises(InvalidArgumentError, match="between 1 and 10000"):
        client.search([b"a"], collection="c", k=0)
    results = client.search([b"a", BAD], collection="c", errors="return")
    assert isinstance(results[1], InvalidArgumentError)


@pytest.mark.parametrize(("options", "most"), [({}, 10), ({"with_vector": True}, 1)])
def test_an_answer_expected_to_be_large_travels_in_smaller_messages(
    kind: Any, address: str, script: Script, options: dict[str, bool], most: int
) -> None:
    with kind(address) as client:
        client.search(keys=[str(number) for number in range(16)], collection="c", k=10_000, **options)
    assert max(script.batches) == most


def test_classify_says_unknown_with_a_label_of_none(client: Any) -> None:
    known, unknown = client.classify([b"a", b"odd"], collection="c")
    assert (known.label, known.confidence, known.votes) == ("shoe", 0.75, (("shoe", 0.75),))
    assert unknown.label is None
    with pytest.raises(InvalidArgumentError, match="knn, prototype, linear"):
        client.classify([b"a"], collection="c", method="forest")


def test_items_go_in_and_come_out(client: Any) -> None:
    items = [
        Item("a", vector=np.array([1, 2], np.float32), label="x", payload={"price": 1.5}),
        Item("b", image=b"picture", content_hash=bytes(32)),
    ]
    written = client.upsert("c", items)
    assert (written.outcomes, written.sequence) == ((Outcome.INSERTED, Outcome.INSERTED), 2)
    assert client.upsert("c", items[:1]).replaced == 1
    found, missing = client.get("c", ["a", "none"], with_vector=True)
    assert missing is None
    assert (found.key, found.label, found.payload) == ("a", "x", {"price": 1.5})
    np.testing.assert_array_equal(found.vector, [1, 2])
    assert [item.key for item in client.scroll("c", page_size=1)] == ["a", "b"]
    assert client.count("c") == 2
    assert client.delete("c", ["a", "none"]) == 1
    with pytest.raises(InvalidArgumentError, match="keys or a filter"):
        client.delete("c")


def test_an_item_that_is_wrong_by_itself_is_an_error_in_its_place(client: Any) -> None:
    items = [Item("a"), Item("b", image=b"x", vector=np.ones(2)), Item("c", vector=np.array([np.nan])), Item("d", b"y")]
    written = client.upsert("c", items, errors="return")
    assert [isinstance(outcome, InvalidArgumentError) for outcome in written.outcomes] == [True, True, True, False]
    with pytest.raises(InvalidArgumentError, match=r"items\[0\]: item 'a' needs an image or a vector"):
        client.upsert("c", items)


def test_a_key_that_utf_8_cannot_hold_is_an_error_in_its_place(client: Any) -> None:
    foreign = os.fsdecode(b"caf\xe9.jpg")
    outcomes = client.upsert("c", [Item("a", b"x"), Item(foreign, b"y")], errors="return").outcomes
    assert outcomes[0] is Outcome.INSERTED
    assert isinstance(outcomes[1], InvalidArgumentError)
    with pytest.raises(InvalidArgumentError, match=r"keys\[0\]: 'caf.*UTF-8"):
        client.search(keys=[foreign], collection="c")


def test_models_are_described(client: Any) -> None:
    (model,) = client.models()
    assert (model.name, model.dim, model.image_height, model.image_width) == ("m", 4, 8, 9)
    assert model.metadata == {"objective": "supcon"}


def test_a_full_queue_is_tried_again_no_sooner_than_the_server_asks(client: Any, script: Script) -> None:
    script.failures = [status("RESOURCE_EXHAUSTED", "queue full", retry=0.2)] * 2
    started = time.monotonic()
    assert client.embed([b"a"]).shape == (1, 4)
    assert time.monotonic() - started >= 0.4
    assert len(script.calls) == 3


def test_a_full_queue_is_reported_when_the_timeout_leaves_no_time(kind: Any, address: str, script: Script) -> None:
    script.failures = [status("RESOURCE_EXHAUSTED", "queue full", retry=30.0)]
    with kind(address, timeout=5.0) as client, pytest.raises(ResourceExhaustedError, match="queue full") as caught:
        client.embed([b"a"])
    assert caught.value.retry_after == 30.0


@pytest.mark.parametrize("rich", [True, False])
def test_an_exhausted_resource_without_a_delay_is_not_tried_again(client: Any, script: Script, rich: bool) -> None:
    script.failures = [status("RESOURCE_EXHAUSTED", "the disk is full", field_name="items" if rich else "")]
    with pytest.raises(ResourceExhaustedError, match="the disk is full") as caught:
        client.upsert("c", [Item("a", vector=[1.0])])
    assert caught.value.retry_after is None
    assert len(script.calls) == 1


def test_an_unavailable_server_is_tried_again_when_that_is_harmless(client: Any, script: Script) -> None:
    script.failures = [status("UNAVAILABLE", "going away")] * 2
    assert client.embed([b"a"]).shape == (1, 4)
    script.failures = [status("UNAVAILABLE", "going away")]
    with pytest.raises(UnavailableError):
        client.create_collection("c")


@pytest.mark.parametrize("rich", [True, False])
def test_a_failed_call_has_the_class_that_owns_its_code(client: Any, script: Script, rich: bool) -> None:
    script.failures = [status("NOT_FOUND", "no collection c", field_name="collection" if rich else "")]
    with pytest.raises(NotFoundError, match="no collection c") as caught:
        client.search([b"a"], collection="c")
    assert caught.value.field == ("collection" if rich else "")


def test_a_late_answer_is_deadline_exceeded(kind: Any, address: str, script: Script) -> None:
    script.gate.clear()
    with kind(address, timeout=0.3) as client, pytest.raises(DeadlineExceededError, match="raise the timeout"):
        client.embed([b"a"])


def test_no_server_is_unavailable_soon_and_says_where(kind: Any) -> None:
    started = time.monotonic()
    with kind("127.0.0.1:1") as client, pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1.*imagekin serve"):
        client.models()
    assert time.monotonic() - started < 10


def test_a_server_that_starts_late_is_waited_for(kind: Any, script: Script, address: str) -> None:
    script.serving = False
    threading.Timer(0.3, lambda: setattr(script, "serving", True)).start()
    with kind(address) as client:
        assert client.health() is False
        client.wait_ready(10)
        assert client.health() is True
    with kind("127.0.0.1:1") as client, pytest.raises(UnavailableError, match="not serving after"):
        client.wait_ready(0.3)


def test_the_token_travels_with_every_call(kind: Any, script: Script, address: str) -> None:
    with kind(address, token="secret") as client:
        client.embed([b"a"])
    assert script.metadata["authorization"] == "Bearer secret"
    with pytest.raises(InvalidArgumentError, match="token"):
        kind(address, token="new\nline")


def test_a_closed_client_says_so(client: Any, address: str) -> None:
    client.models()
    client.close()
    client.close()
    for call in (client.models, client.health, client.wait_ready, lambda: client.embed([b"a"])):
        with pytest.raises(CancelledError, match="closed"):
            call()


@pytest.mark.parametrize("images", [1, 40], ids=["one message", "several messages"])
def test_closing_ends_the_calls_under_way(address: str, script: Script, images: int) -> None:
    script.gate.clear()
    with Client(address, limits=MessageLimits(items=8)) as client, ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.embed, [b"a"] * images)
        arrived(script)
        client.close()
        with pytest.raises(CancelledError):
            call.result(10)


@pytest.mark.parametrize("images", [1, 40], ids=["one message", "several messages"])
def test_closing_ends_the_awaited_calls_under_way(address: str, script: Script, images: int) -> None:
    script.gate.clear()

    async def close_amid_a_call() -> None:
        async with AsyncClient(address, limits=MessageLimits(items=8)) as client:
            call = asyncio.create_task(client.embed([b"a"] * images))
            await asyncio.to_thread(arrived, script)
            await client.close()
            with pytest.raises(CancelledError, match="closed"):
                await asyncio.wait_for(call, 10)

    asyncio.run(close_amid_a_call())


def test_a_pause_between_two_tries_ends_when_the_client_is_closed(address: str, script: Script) -> None:
    script.failures = [status("RESOURCE_EXHAUSTED", "queue full", retry=30.0)]

    async def close_amid_a_pause() -> None:
        async with AsyncClient(address) as client:
            call = asyncio.create_task(client.models())
            await asyncio.to_thread(arrived, script)
            await asyncio.sleep(0.2)
            await client.close()
            with pytest.raises(CancelledError, match="closed"):
                await asyncio.wait_for(call, 10)

    asyncio.run(close_amid_a_pause())


def test_a_cancelled_task_is_cancelled(address: str, script: Script) -> None:
    script.gate.clear()

    async def cancel_a_call() -> None:
        async with AsyncClient(address) as client:
            call = asyncio.create_task(client.embed([b"a"]))
            await asyncio.to_thread(arrived, script)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(cancel_a_call())


def test_an_async_client_may_be_made_before_its_event_loop_runs(address: str) -> None:
    client = AsyncClient(address)

    async def use() -> int:
        async with client:
            return len(await client.models())

    assert asyncio.run(use()) == 1


def test_an_async_client_in_a_second_event_loop_says_what_is_wrong(address: str) -> None:
    client = AsyncClient(address)
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(client.count("c")) == 0
    for call in (client.models, client.health, client.close, lambda: client.embed([b"a", b"b"])):
        with pytest.raises(FailedPreconditionError, match="make a client in each event loop"):
            asyncio.run(call())
    assert loop.run_until_complete(client.count("c")) == 0
    loop.run_until_complete(client.close())
    loop.close()


def arrived(script: Script) -> None:
    """Wait until the server works on a call."""
    for _ in range(1000):
        if script.calls:
            return
        time.sleep(0.01)
    raise TimeoutError("no call has arrived")


@pytest.mark.parametrize("options", [{"timeout": 0}, {"in_flight": 0}, {"address": ""}, {"address": "https://x:1"}])
def test_wrong_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        Client(**options)


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"ca\.pem"):
        Client("localhost:1", tls=tmp_path / "ca.pem")


def test_a_call_that_fails_as_a_whole_raises_even_when_errors_are_returned(client: Any, script: Script) -> None:
    script.failures = [status("NOT_FOUND", "no model")]
    with pytest.raises(ImagekinError, match="no model"):
        client.embed([b"a"], errors="return")


def test_a_message_over_the_servers_size_is_a_wrong_argument_and_not_a_full_queue(client: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="takes no message of this size"):
        client.embed([bytes(65 * 2**20)])


def test_images_are_read_no_further_ahead_than_the_messages_under_way(address: str) -> None:
    read = 0

    def images() -> Iterator[bytes]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield str(number).encode()

    with Client(address, in_flight=2, limits=MessageLimits(items=4)) as client:
        results = client.iter_embed(images())
        for _ in range(4):
            next(results)
        assert read <= 4 * (2 + 2)
        results.close()
