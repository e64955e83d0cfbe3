"""Calls are let into the queue by its room, by how long it takes to get through it, and by who is there already."""

import asyncio

import pytest

from imagekin.errors import ResourceExhaustedError
from imagekin.serving.embedding.admission import Admission, Load
from imagekin.serving.settings import Limits

ME, MINE, YOU = ("me", "a connection", 1), ("me", "a connection", 2), ("you", "another", 3)
# An image that takes a tenth of a second by itself.
IMAGE = Load(1, 100, 0.1)


class Clock:
    """Time as the test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admission(clock: Clock) -> Admission:
    return Admission(Limits(max_queue=16, max_batch_items=16), clock)


def images(count: int, seconds: float = 0.1) -> Load:
    return Load(count, 100 * count, seconds * count)


def process(admission: Admission, clock: Clock, load: Load, seconds: float) -> None:
    """Let a request through an otherwise empty queue, in so many seconds."""
    admission.enter(ME, load)
    clock.now += seconds
    admission.leave(ME, load, wanted=True)


@pytest.fixture
def busy(admission: Admission, clock: Clock) -> Admission:
    """A queue of nine of my images, each of which takes the tenth of a second that it is guessed to."""
    process(admission, clock, images(10), 1.0)
    admission.enter(ME, images(9))
    return admission


@pytest.mark.parametrize("timeout", [0.5, 1.0, 2.3])
def test_a_call_that_would_barely_be_in_time_is_refused_because_the_wait_is_a_guess(
    clock: Clock, timeout: float
) -> None:
    roomy = Admission(Limits(max_queue=64, max_batch_items=16), clock)
    process(roomy, clock, images(10), 1.0)
    roomy.enter(ME, images(9))
    refused = roomy.refusal(YOU, images(9), timeout)
    assert isinstance(refused, ResourceExhaustedError)
    assert refused.retry_after == pytest.approx(1.8)


@pytest.mark.parametrize("timeout", [2.4, 60.0, None])
def test_a_call_with_time_to_spare_is_let_in(busy: Admission, timeout: float | None) -> None:
    assert busy.refusal(YOU, images(7), timeout) is None


def test_another_caller_waits_for_its_own_turn_only(busy: Admission) -> None:
    # One of its images and one of mine take 0.2 s, and 0.26 to be careful.
    assert busy.refusal(YOU, IMAGE, 0.27) is None
    assert busy.refusal(YOU, IMAGE, 0.25) is not None
    assert busy.refusal(YOU, images(3), 0.79) is None
    assert busy.refusal(YOU, images(3), 0.77) is not None


def test_another_connection_and_another_request_of_the_same_caller_have_turns_of_their_own(busy: Admission) -> None:
    assert busy.refusal(("me", "another connection", 3), IMAGE, 0.27) is None
    assert busy.refusal(MINE, IMAGE, 0.27) is None


def test_many_requests_of_a_caller_get_no_more_turns_than_one_of_another(admission: Admission, clock: Clock) -> None:
    process(admission, clock, images(10), 1.0)
    for number in range(9):
        admission.enter(("me", f"connection {number}", number), IMAGE)
    assert admission.refusal(YOU, IMAGE, 0.27) is None


def test_a_full_queue_takes_nothing_more_and_an_empty_one_anything(admission: Admission) -> None:
    admission.enter(ME, images(9))
    assert admission.refusal(YOU, images(7)) is None
    assert admission.refusal(YOU, images(8)) is not None
    admission.leave(ME, images(9), wanted=False)
    assert admission.refusal(YOU, images(1000), 1e-9) is None


def test_a_caller_leaves_a_quarter_of_the_queue_to_others(admission: Admission) -> None:
    admission.enter(ME, images(9))
    assert admission.refusal(MINE, images(3)) is None
    assert admission.refusal(MINE, images(4)) is not None
    assert admission.refusal(MINE, Load(1, 200 * 2**20, 0.1)) is not None
    assert admission.refusal(YOU, images(7)) is None


def test_large_images_teach_nothing_wrong_about_small_ones(admission: Admission, clock: Clock) -> None:
    process(admission, clock, images(9, seconds=1.0), 9.0)
    admission.enter(ME, images(1, seconds=0.01))
    assert admission.refusal(YOU, images(1, seconds=0.01), 0.03) is None


def test_a_bad_minute_is_corrected_by_small_traffic(admission: Admission, clock: Clock) -> None:
    # Everything took a hundred times as long as it should.
    process(admission, clock, images(1), 10.0)
    admission.enter(ME, IMAGE)
    assert admission.refusal(YOU, IMAGE, 1.0) is not None
    clock.now += 10.0
    admission.leave(ME, IMAGE, wanted=True)
    for _ in range(3):
        process(admission, clock, IMAGE, 0.1)
    admission.enter(ME, IMAGE)
    assert admission.refusal(YOU, IMAGE, 1.0) is None


def test_a_bad_minute_is_forgotten_when_nobody_calls_for_a_while(admission: Admission, clock: Clock) -> None:
    process(admission, clock, images(1), 10.0)
    clock.now += 11.0
    admission.enter(ME, IMAGE)
    assert admission.refusal(YOU, IMAGE, 0.001) is None


def test_one_slow_moment_does_not_decide_what_the_next_calls_are_told(admission: Admission, clock: Clock) -> None:
    process(admission, clock, images(10), 1.0)
    process(admission, clock, images(10), 3.0)
    admission.enter(ME, IMAGE)
    # Twice as long as guessed, neither once nor three times.
    assert admission.refusal(YOU, IMAGE, 0.5) is not None
    assert admission.refusal(YOU, IMAGE, 0.54) is None


def test_the_time_between_two_requests_is_no_work(admission: Admission, clock: Clock) -> None:
    process(admission, clock, images(10), 1.0)
    clock.now += 9.0
    process(admission, clock, images(10), 1.0)
    admission.enter(ME, IMAGE)
    assert admission.refusal(YOU, IMAGE, 0.27) is None


def test_nobody_is_told_to_come_back_in_an_hour(admission: Admission, clock: Clock) -> None:
    process(admission, clock, images(1), 1000.0)
    admission.enter(ME, images(9))
    refused = admission.refusal(YOU, images(8))
    assert refused is not None
    assert refused.retry_after == 30.0


def test_bulk_streams_leave_half_of_the_queue_to_single_calls(admission: Admission) -> None:
    async def wait() -> bool:
        waiting = asyncio.ensure_future(admission.wait_for_room(images(1)))
        await asyncio.sleep(0)
        waiting.cancel()
        return not waiting.done()

    admission.enter(ME, images(7))
    assert not asyncio.run(wait())
    admission.enter(YOU, IMAGE)
    assert asyncio.run(wait())


def test_a_full_or_long_queue_is_noticed_before_a_request_is_read(admission: Admission, clock: Clock) -> None:
    assert not admission.may_refuse()
    process(admission, clock, images(10), 1.0)
    admission.enter(ME, images(16, seconds=0.0))
    assert admission.may_refuse()
    admission.leave(ME, images(16, seconds=0.0), wanted=False)
    admission.enter(ME, images(2))
    assert admission.may_refuse()


def test_images_that_nobody_waits_for_teach_nothing(admission: Admission, clock: Clock) -> None:
    admission.enter(ME, IMAGE)
    clock.now += 10.0
    admission.leave(ME, IMAGE, wanted=False)
    admission.enter(ME, IMAGE)
    assert admission.refusal(YOU, IMAGE, 0.001) is None


def test_what_has_left_is_counted_no_more(admission: Admission) -> None:
    for path in (ME, YOU):
        admission.enter(path, images(3))
    for path in (ME, YOU):
        admission.leave(path, images(3), wanted=True)
    assert (admission.queued, admission.queued_bytes, admission._all.cost) == (0, 0, 0.0)
    assert not admission._all.members
