"""Calls are let into the queue by its room, and by how long it takes to get through it."""

import pytest

from imagekin.errors import ResourceExhaustedError
from imagekin.serving.embedding.admission import Admission
from imagekin.serving.settings import Limits


@pytest.fixture
def busy() -> Admission:
    """A queue of nine images, each of which takes a tenth of a second."""
    admission = Admission(Limits(max_queue=16, max_batch_items=16))
    admission.enter(9, 0)
    admission._pace._seconds = 0.1
    return admission


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
