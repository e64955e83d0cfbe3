"""A token makes as many calls as it may, and is told when the next one would be in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagekin.errors import ResourceExhaustedError
from imagekin.serving.transport.rates import Rate


@given(st.floats(0.1, 1000), st.lists(st.floats(0, 10), max_size=50))
def test_over_any_time_no_more_calls_than_the_rate_and_a_second_of_it(per_second: float, pauses: list[float]) -> None:
    now, taken = 0.0, 0
    rate = Rate(per_second, lambda: now)
    for pause in pauses:
        now += pause
        try:
            rate.take()
            taken += 1
        except ResourceExhaustedError:
            pass
    assert taken <= per_second * now + max(per_second, 1.0) + 1e-6


def test_a_call_is_in_order_after_the_time_that_its_refusal_says() -> None:
    now = 0.0
    rate = Rate(2.0, lambda: now)
    rate.take()
    rate.take()
    with pytest.raises(ResourceExhaustedError, match="2 calls a second") as refused:
        rate.take()
    assert refused.value.retry_after == pytest.approx(0.5)
    now += 0.5
    rate.take()
