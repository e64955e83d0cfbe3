"""The pipeline batches what is there, keeps to its bounds, and spends no inference on work that nobody waits for."""

import asyncio
import gc
import hashlib
import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.encoder.metadata import Metadata, Preprocess
from imagekin.encoder.runtime.session import Outputs
from imagekin.errors import DeadlineExceededError, FailedPreconditionError, ImageError, ResourceExhaustedError
from imagekin.serving.embedding.image_jobs import EmbeddedImage
from imagekin.serving.embedding.pipeline import Pipeline
from imagekin.serving.settings import Limits
from imagekin.serving.transport.callers import CALLER, Caller

SIDE = 2


class GatedRunner:
    """A model whose images are one byte each and whose gates the test opens; it records what it was given."""

    metadata = Metadata("space", 3, Preprocess(SIDE, SIDE))

    def __init__(self) -> None:
        self.decoding = threading.Event()
        self.running = threading.Event()
        self.decoding.set()
        self.running.set()
        self.decode_began = threading.Event()
        self.run_began = threading.Event()
        self.decoded: list[int] = []
        self.batches: list[list[int]] = []

    def load_pixels(self, data: bytes | memoryview, limits: DecodeLimits) -> NDArray[np.uint8]:
        self.decode_began.set()
        assert self.decoding.wait(10)
        if data == b"\xff":
            raise ImageError("not an image")
        if data == b"\xfe":
            raise OSError("a bug")
        self.decoded.append(data[0])
        return np.full((SIDE, SIDE, 3), data[0], np.uint8)

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        self.run_began.set()
        assert self.running.wait(10)
        values = [int(image[0, 0, 0]) for image in pixels]
        self.batches.append(values)
        if 200 in values:
            raise FailedPreconditionError("not finite")
        return Outputs(np.array([[value, 0, 1] for value in values], np.float32), None)

    @property
    def inferred(self) -> int:
        return sum(map(len, self.batches))


@pytest.fixture
def runner() -> GatedRunner:
    return GatedRunner()


@contextmanager
def opened(runner: GatedRunner, workers: int, sessions: int = 1) -> Iterator[Pipeline]:
    # Of which one caller may have 16 images.
    limits = Limits(max_queue=21, max_batch_items=16)
    pipeline = Pipeline(runner, limits, workers=workers, sessions=sessions, max_batch=4)
    yield pipeline
    runner.decoding.set()
    runner.running.set()
    pipeline.close()


@pytest.fixture
def pipeline(runner: GatedRunner) -> Iterator[Pipeline]:
    """A pipeline of one thread, so that the order of its steps is known."""
    with opened(runner, 1) as pipeline:
        yield pipeline


@pytest.fixture
def wide(runner: GatedRunner) -> Iterator[Pipeline]:
    """A pipeline that decodes beside its one inference."""
    with opened(runner, 3) as pipeline:
        yield pipeline


def files(*values: int) -> list[bytes]:
    return [bytes([value]) for value in values]


def values_of(outcomes: list[object]) -> list[int | str]:
    """Return the first component of each embedding, the name of each error."""
    return [int(each.vector[0]) if isinstance(each, EmbeddedImage) else type(each).__name__ for each in outcomes]


def huge(value: int) -> bytes:
    """Return the beginning of a PNG file of 36 megapixels, with the value as its first byte but one."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (6000).to_bytes(4, "big") * 2 + bytes([value])


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 10)


def test_each_image_gets_its_own_answer_in_its_place(pipeline: Pipeline) -> None:
    outcomes = asyncio.run(pipeline.embed(files(1, 255, 3, 4, 5, 6, 7)))
    assert values_of(list(outcomes)) == [1, "ImageError", 3, 4, 5, 6, 7]
    assert pipeline.queued == 0


def test_concurrent_requests_share_batches_and_keep_their_answers(pipeline: Pipeline, runner: GatedRunner) -> None:
    async def many() -> list[list[int | str]]:
        runner.running.clear()
        calls = [asyncio.create_task(pipeline.embed(files(value, value + 100))) for value in range(8)]
        await until(runner.run_began)
        while pipeline.queued < 16:
            await asyncio.sleep(0.005)
        runner.running.set()
        return [values_of(list(await call)) for call in calls]

    assert asyncio.run(many()) == [[value, value + 100] for value in range(8)]
    assert max(map(len, runner.batches)) == 4
    assert len(runner.batches) < 16


def test_the_event_loop_neither_decodes_nor_infers(pipeline: Pipeline, runner: GatedRunner) -> None:
    threads: set[int] = set()
    load, run = runner.load_pixels, runner.run

    def load_pixels(data: bytes | memoryview, limits: DecodeLimits) -> NDArray[np.uint8]:
        threads.add(threading.get_ident())
        return load(data, limits)

    def noted_run(pixels: NDArray[np.uint8]) -> Outputs:
        threads.add(threading.get_ident())
        return run(pixels)

    async def ask() -> None:
        for value in range(50):
            await pipeline.embed(files(value))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "load_pixels", load_pixels)
        patch.setattr(runner, "run", noted_run)
        asyncio.run(ask())
    assert threads
    assert threading.get_ident() not in threads


def test_a_short_queue_is_not_held_up_for_a_batch(runner: GatedRunner) -> None:
    async def few(pipeline: Pipeline) -> None:
        runner.decoding.clear()
        calls = [asyncio.create_task(pipeline.embed(files(value))) for value in range(1, 7)]
        await until(runner.decode_began)
        await asyncio.sleep(0.02)
        runner.decoding.set()
        await asyncio.gather(*calls)

    with opened(runner, 2, sessions=2) as pipeline:
        asyncio.run(few(pipeline))
    assert len(runner.batches[0]) < 4  # what the largest batch holds, and the queue would have filled
    assert sorted(value for batch in runner.batches for value in batch) == [1, 2, 3, 4, 5, 6]


def test_hashes_are_of_the_file_and_only_when_asked_for(pipeline: Pipeline) -> None:
    (with_hash,) = asyncio.run(pipeline.embed(files(7), hashes=True))
    (without,) = asyncio.run(pipeline.embed(files(7)))
    assert isinstance(with_hash, EmbeddedImage)
    assert isinstance(without, EmbeddedImage)
    assert with_hash.content_hash == hashlib.sha256(b"\x07").digest()
    assert without.content_hash == b""


def test_pixels_need_no_decoding(pipeline: Pipeline, runner: GatedRunner) -> None:
    outcomes = asyncio.run(pipeline.embed([np.full((SIDE, SIDE, 3), 9, np.uint8)]))
    assert values_of(list(outcomes)) == [9]
    assert runner.decoded == []


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(pipeline: Pipeline, runner: GatedRunner) -> None:
    async def overload() -> None:
        runner.running.clear()
        waiting = asyncio.create_task(pipeline.embed(files(*range(16))))
        await until(runner.run_began)
        # At once: while the model still holds what is in the queue.
        with pytest.raises(ResourceExhaustedError) as refused:
            await pipeline.embed(files(1))
        assert not runner.batches
        assert 0 < (refused.value.retry_after or 0.0) <= 30
        runner.running.set()
        assert len(await waiting) == 16
        assert len(await pipeline.embed(files(1))) == 1

    asyncio.run(overload())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Caller("one", "a"), Caller("another", "b")),
        (Caller("one", "a"), Caller("one", "b")),
        (Caller("one", "a"), Caller("one", "a")),
    ],
    ids=["callers", "connections", "requests"],
)
def test_small_images_are_served_while_large_ones_are_decoded(first: Caller, second: Caller) -> None:
    begun = threading.Semaphore(0)
    gate = threading.Event()

    class Slow(GatedRunner):
        def load_pixels(self, data: bytes | memoryview, limits: DecodeLimits) -> NDArray[np.uint8]:
            if len(data) > 1:
                begun.release()
                assert gate.wait(10)
            return super().load_pixels(data, limits)

    async def both(pipeline: Pipeline) -> None:
        CALLER.set(first)
        large = asyncio.create_task(pipeline.embed([huge(1)] * 6))
        for _ in range(2):
            assert await asyncio.to_thread(begun.acquire, timeout=10)
        CALLER.set(second)
        for number in range(2, 5):
            assert values_of(list(await asyncio.wait_for(pipeline.embed(files(number)), 10))) == [number]
        # No more than two of the large ones at a time.
        assert not begun.acquire(timeout=0.05)
        gate.set()
        assert len(await large) == 6

    with opened(Slow(), 2) as pipeline:
        asyncio.run(both(pipeline))


@pytest.mark.parametrize("max_batch", [1, 4])
def test_large_images_have_their_part_of_the_batches_however_many_small_ones_wait(max_batch: int) -> None:
    runner = GatedRunner()
    pipeline = Pipeline(runner, Limits(), workers=1, max_batch=max_batch)

    async def both() -> None:
        runner.running.clear()
        plug = asyncio.create_task(pipeline.embed(files(1)))
        await until(runner.run_began)
        small = asyncio.create_task(pipeline.embed(files(*[2] * 40)))
        large = asyncio.create_task(pipeline.embed([huge(3)]))
        # It is decoded while the only other thread is held up in the encoder.
        while not pipeline._large.decoded:
            await asyncio.sleep(0.005)
        runner.running.set()
        await asyncio.gather(plug, small, large)

    asyncio.run(both())
    pipeline.close()
    order = list(itertools.chain.from_iterable(runner.batches))
    # One of four, besides the one in hand and the rest of its own batch.
    assert order.index(huge(3)[0]) <= 1 + 4 + max_batch


def test_a_patient_caller_waits_for_room_and_leaves_some(pipeline: Pipeline, runner: GatedRunner) -> None:
    async def stream() -> None:
        runner.running.clear()
        first = asyncio.create_task(pipeline.embed(files(*range(8)), patient=True))
        await until(runner.run_began)
        second = asyncio.create_task(pipeline.embed(files(*range(8)), patient=True))
        await asyncio.sleep(0.05)
        assert pipeline.queued == 8
        single = asyncio.create_task(pipeline.embed(files(100)))
        await asyncio.sleep(0)
        assert pipeline.queued == 9
        runner.running.set()
        assert [len(outcomes) for outcomes in await asyncio.gather(first, second, single)] == [8, 8, 1]

    asyncio.run(stream())


def test_a_cancelled_request_in_the_queue_costs_no_decoding_and_no_inference(
    pipeline: Pipeline, runner: GatedRunner
) -> None:
    async def cancel() -> None:
        runner.decoding.clear()
        first = asyncio.create_task(pipeline.embed(files(1)))
        await until(runner.decode_began)
        second = asyncio.create_task(pipeline.embed(files(2, 3, 4)))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        runner.decoding.set()
        await first
        assert values_of(list(await pipeline.embed(files(5)))) == [5]

    asyncio.run(cancel())
    assert runner.decoded == [1, 5]
    assert runner.inferred == 2
    assert pipeline.queued == 0


def test_an_expired_request_costs_no_decoding_and_no_inference(pipeline: Pipeline, runner: GatedRunner) -> None:
    async def expire() -> None:
        runner.decoding.clear()
        first = asyncio.create_task(pipeline.embed(files(1)))
        await until(runner.decode_began)
        second = asyncio.create_task(pipeline.embed(files(2, 3), timeout=0.02))
        await asyncio.sleep(0.05)
        runner.decoding.set()
        await first
        with pytest.raises(DeadlineExceededError):
            await second

    asyncio.run(expire())
    assert runner.decoded == [1]
    assert runner.inferred == 1


def test_a_request_that_expires_after_decoding_costs_no_inference(wide: Pipeline, runner: GatedRunner) -> None:
    async def expire() -> None:
        runner.running.clear()
        first = asyncio.create_task(wide.embed(files(1)))
        await until(runner.run_began)
        second = asyncio.create_task(wide.embed(files(2), timeout=1))
        while 2 not in runner.decoded:
            await asyncio.sleep(0.005)
        await asyncio.sleep(1.05)
        runner.running.set()
        await first
        with pytest.raises(DeadlineExceededError):
            await second

    asyncio.run(expire())
    assert runner.batches == [[1]]


def test_an_image_that_the_model_cannot_take_fails_alone(pipeline: Pipeline, runner: GatedRunner) -> None:
    async def mixed() -> list[list[int | str]]:
        runner.running.clear()
        calls = [asyncio.create_task(pipeline.embed(files(*values))) for values in ((1,), (2, 200), (3,))]
        await until(runner.run_began)
        await asyncio.sleep(0.05)
        runner.running.set()
        return [values_of(list(await call)) for call in calls]

    assert asyncio.run(mixed()) == [[1], [2, "FailedPreconditionError"], [3]]


@pytest.mark.parametrize("bad", [b"\xff", b"\xc8"], ids=["no image", "not for the model"])
def test_a_request_with_a_bad_image_leaves_nothing_to_the_garbage_collector(pipeline: Pipeline, bad: bytes) -> None:
    class Request(list[bytes]):
        """A list that can be watched."""

    images = Request([bad, bytes([1])])
    gone = weakref.ref(images)
    gc.disable()
    try:
        assert len(asyncio.run(pipeline.embed(images))) == 2
        del images
        # The pipeline's thread may still be on its way out of the call that gave the answer.
        end = time.monotonic() + 5
        while gone() is not None and time.monotonic() < end:
            time.sleep(0.001)
        assert gone() is None
    finally:
        gc.enable()


def test_a_bug_fails_its_request_and_no_other(pipeline: Pipeline) -> None:
    async def mixed() -> None:
        good, bad = asyncio.create_task(pipeline.embed(files(1))), asyncio.create_task(pipeline.embed(files(2, 254)))
        with pytest.raises(OSError, match="a bug"):
            await bad
        assert values_of(list(await good)) == [1]

    asyncio.run(mixed())
    assert pipeline.queued == 0


def test_decoding_does_not_run_ahead_of_inference_without_bound(wide: Pipeline, runner: GatedRunner) -> None:
    async def run() -> None:
        runner.running.clear()
        call = asyncio.create_task(wide.embed(files(*range(16))))
        while len(runner.decoded) < 4 + 8:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        # At most one batch in the encoder's hands, two between the stages, and what was in hand when they were full.
        assert len(runner.decoded) <= 4 + 8 + 2
        runner.running.set()
        await call

    asyncio.run(run())


def test_threads_infer_at_the_same_time_as_often_as_there_are_sessions(runner: GatedRunner) -> None:
    both = threading.Barrier(2, timeout=10)

    class Meeting(GatedRunner):
        def run(self, pixels: NDArray[np.uint8]) -> Outputs:
            both.wait()
            return super().run(pixels)

    pipeline = Pipeline(Meeting(), Limits(), workers=1, sessions=2, max_batch=1)
    assert values_of(list(asyncio.run(pipeline.embed(files(1, 2, 3, 4))))) == [1, 2, 3, 4]
    pipeline.close()


def test_closing_waits_for_what_is_queued_and_ends_every_thread(runner: GatedRunner) -> None:
    for workers in (1, 2, 5):
        before = threading.active_count()
        pipeline = Pipeline(runner, Limits(), workers=workers, max_batch=2)

        async def leave(pipeline: Pipeline = pipeline) -> None:
            call = asyncio.create_task(pipeline.embed(files(*range(20))))
            await asyncio.sleep(0)
            await asyncio.to_thread(pipeline.close)
            assert values_of(list(await call)) == list(range(20))

        asyncio.run(leave())
        assert threading.active_count() == before


def test_closing_ends_the_threads_that_wait_for_room_among_the_decoded_large_ones(runner: GatedRunner) -> None:
    before = threading.active_count()
    pipeline = Pipeline(runner, Limits(), workers=4, max_batch=1)

    async def leave() -> None:
        runner.running.clear()
        call = asyncio.create_task(pipeline.embed([huge(value) for value in range(8)]))
        # One is in the encoder's hands, and there is room for one more at least.
        await until(runner.run_began)
        while len(runner.decoded) < 2:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        closing = threading.Thread(target=pipeline.close, daemon=True)
        closing.start()
        await asyncio.sleep(0.05)
        runner.running.set()
        assert len(await call) == 8
        await asyncio.to_thread(closing.join, 10)
        assert not closing.is_alive()

    asyncio.run(leave())
    assert threading.active_count() == before


def test_a_cancelled_request_does_not_keep_others_of_its_batch_from_their_answers(
    pipeline: Pipeline, runner: GatedRunner
) -> None:
    async def cancel() -> None:
        runner.decoding.clear()
        runner.running.clear()
        calls = [asyncio.create_task(pipeline.embed(files(value))) for value in (1, 2)]
        await until(runner.decode_began)
        runner.decoding.set()
        # One thread decodes both before it infers, so that they are in one batch.
        await until(runner.run_began)
        calls[0].cancel()
        await asyncio.sleep(0)
        runner.running.set()
        assert values_of(list(await asyncio.wait_for(calls[1], 10))) == [2]

    asyncio.run(cancel())
    assert runner.batches == [[1, 2]]
    assert pipeline.queued == 0


def test_a_model_that_is_replaced_serves_the_blocks_that_hold_it(runner: GatedRunner) -> None:
    pipeline = Pipeline(runner, Limits(max_queue=16, max_batch_items=16), workers=1, max_batch=4)

    async def retire() -> None:
        with pipeline.leased(), pipeline.leased():
            retiring = asyncio.create_task(pipeline.retire())
            await asyncio.sleep(0.05)
            assert not retiring.done()
            # As a call does that has begun, and is only now through with reading its images.
            assert values_of(list(await asyncio.wait_for(pipeline.embed(files(5)), 10))) == [5]
        await asyncio.wait_for(retiring, 10)

    asyncio.run(retire())
