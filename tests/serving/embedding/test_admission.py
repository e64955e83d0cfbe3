"""Calls are let into the queue by its room, and by how long it takes to get through it."""

import asyncio

import pytest

from imagekin.errors import ResourceExhaustedError
from imagekin.serving.embedding.admission import Admission
from imagekin.serving.settings import Limits


@pytest.fixture
def busy() -> Admission:
    """A queue of nine images, each of which takes a tenth of a second."""
    queue = Admission(Limits(max_queue=16, max_batch_items=16))
    queue.enter(9, 0)
    queue._pace._seconds = 0.1
    return queue


@pytest.mark.parametrize("timeout", [0.5, 1.0, 1.2])
def test_a_call_that_would_barely_be_in_time_is_refused_because_the_wait_is_a_guess(
    busy: Admission, timeout: float
) -> None:
    refused = busy.refusal(1, timeout=timeout)
    assert isinstance(refused, ResourceExhaustedError)
    assert refused.retry_after == pytest.approx(1.0)


@pytest.mark.parametrize("timeout", [1.4, 60.0, None])
def test_a_call_with_time_to_spare_is_let_in(busy: Admission, timeout: float | None) -> None:
    assert busy.refusal(1, timeout=timeout) is None


def test_an_empty_queue_takes_anything_and_a_full_one_nothing_more(busy: Admission) -> None:
    assert busy.refusal(7) is None
    assert busy.refusal(8) is not None
    busy.leave(9, 0, wanted=False)
    assert busy.refusal(1_000, timeout=1e-9) is None


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("imagekin.serving.embedding.admission.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def work_on(queue: Admission, clock: Clock, images: int, seconds: float, *, wanted: bool = True) -> None:
    """Take so many images, one after the other, through a queue that is empty before and after."""
    queue.enter(images, 0)
    for _ in range(images):
        clock.now += seconds
        queue.leave(1, 0, wanted=wanted)


def expected_wait(queue: Admission, images: int) -> float:
    """Return the wait that a refused call behind so many images is told; the queue is empty before and after."""
    queue.enter(images, 0)
    refused = queue.refusal(1, timeout=0.0)
    queue.leave(images, 0, wanted=False)
    return (refused.retry_after or 0.0) if refused else 0.0


def test_the_wait_is_that_of_all_images_in_the_queue_at_the_pace_of_late(clock: Clock) -> None:
    queue = Admission(Limits(max_queue=64, max_batch_items=16))
    assert expected_wait(queue, 9) == 0.0, "of a pace that nobody knows, nothing is said"
    work_on(queue, clock, 10, 0.1)
    assert expected_wait(queue, 9) == pytest.approx(1.0)


def test_the_time_between_two_requests_does_not_count_as_work(clock: Clock) -> None:
    queue = Admission(Limits(max_queue=64, max_batch_items=16))
    work_on(queue, clock, 10, 0.1)
    clock.now += 1_000.0
    work_on(queue, clock, 10, 0.1)
    assert expected_wait(queue, 9) == pytest.approx(1.0)


def test_images_that_nobody_waited_for_do_not_make_the_model_look_fast(clock: Clock) -> None:
    queue = Admission(Limits(max_queue=64, max_batch_items=16))
    work_on(queue, clock, 10, 0.1)
    queue.enter(40, 0)
    clock.now += 0.3
    queue.leave(30, 0, wanted=False)
    for _ in range(10):
        clock.now += 0.1
        queue.leave(1, 0, wanted=True)
    assert expected_wait(queue, 9) >= 1.0


def test_one_slow_moment_does_not_decide_what_the_next_calls_are_told(clock: Clock) -> None:
    queue = Admission(Limits(max_queue=64, max_batch_items=16))
    work_on(queue, clock, 10, 0.1)
    work_on(queue, clock, 1, 1.0)
    assert expected_wait(queue, 9) == pytest.approx(5.5)
    for _ in range(10):
        work_on(queue, clock, 10, 0.1)
    assert expected_wait(queue, 9) == pytest.approx(1.0, rel=0.05)


def test_bulk_streams_leave_half_of_the_queue_to_single_calls(clock: Clock) -> None:
    async def filled() -> Admission:
        queue = Admission(Limits(max_queue=16, max_batch_items=16, max_queue_bytes=1_600, max_message_bytes=1_000))
        await asyncio.wait_for(queue.wait_for_room(100, 10_000), 10)  # an empty one takes anything
        queue.enter(4, 400)
        await asyncio.wait_for(queue.wait_for_room(4, 400), 10)
        for images, size in ((5, 0), (1, 500)):
            waiting = asyncio.create_task(queue.wait_for_room(images, size))
            await asyncio.sleep(0)
            assert not waiting.done()
            queue.leave(4, 400, wanted=True)
            await asyncio.wait_for(waiting, 10)
            queue.enter(4, 400)
        return queue

    assert asyncio.run(filled()).refusal(12, 1_200) is None


def test_the_bytes_of_the_queue_are_limited_as_its_images_are(clock: Clock) -> None:
    queue = Admission(Limits(max_queue=16, max_batch_items=16, max_queue_bytes=1_000, max_message_bytes=1_000))
    assert queue.refusal(1, 5_000) is None
    queue.enter(1, 600)
    assert queue.refusal(1, 400) is None
    assert queue.refusal(1, 401) is not None


def test_a_full_or_long_queue_is_noticed_before_a_request_is_read(clock: Clock) -> None:
    queue = Admission(Limits(max_queue=16, max_batch_items=16))
    assert not queue.may_refuse()
    queue.enter(15, 0)
    assert not queue.may_refuse(), "neither full nor known to be slow"
    queue.enter(1, 0)
    assert queue.may_refuse()
    queue.leave(16, 0, wanted=False)
    work_on(queue, clock, 10, 0.1)
    queue.enter(1, 0)
    assert not queue.may_refuse()
    queue.enter(1, 0)
    assert queue.may_refuse()


def test_nobody_is_told_to_come_back_in_an_hour_or_at_once(clock: Clock) -> None:
    queue = Admission(Limits(max_queue=16, max_batch_items=16))
    queue.enter(16, 0)
    refused = queue.refusal()
    assert refused is not None
    assert refused.retry_after == pytest.approx(0.05)
    queue.leave(16, 0, wanted=False)
    work_on(queue, clock, 1, 1_000.0)
    queue.enter(16, 0)
    for timeout in (None, 1.0):
        refused = queue.refusal(timeout=timeout)
        assert refused is not None
        assert refused.retry_after == pytest.approx(30.0)
