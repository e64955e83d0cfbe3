"""A status becomes the class that owns its code, and a call is tried again only when that helps and is harmless."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagekin.client.retries import RetryPolicy, call_error, status_error
from imagekin.errors import (
    ImagekinError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    error_classes,
)
from tests.client.scripted import status

POLICY = RetryPolicy(attempts=4, first=0.1, longest=1.0)


@pytest.mark.parametrize("code", sorted(error_classes()))
def test_every_code_has_its_class_rich_or_plain(code: str) -> None:
    kind = error_classes()[code]
    rich = status_error(status(code, "what to do", field_name="k"))
    assert type(rich) is kind
    assert (str(rich), rich.field) == ("what to do", "k")
    assert type(call_error(code, "what to do", None, "host:1")) is kind


@pytest.mark.parametrize("code", ["ABORTED", "OUT_OF_RANGE", "UNKNOWN"])
def test_a_code_that_no_class_owns_is_the_base_class(code: str) -> None:
    # A class that states no code of its own owns none, wherever it was defined.
    class StrayError(ImagekinError):
        pass

    assert StrayError not in error_classes().values()
    assert type(call_error(code, "", None, "host:1")) is ImagekinError


def test_the_rich_details_win_over_the_plain_status() -> None:
    details = status("NOT_FOUND", "no collection", field_name="collection").SerializeToString()
    error = call_error("UNKNOWN", "", [("grpc-status-details-bin", details)], "host:1")
    assert isinstance(error, NotFoundError)
    assert error.field == "collection"


def test_the_retry_delay_is_read() -> None:
    error = status_error(status("RESOURCE_EXHAUSTED", "full", retry=1.25))
    assert isinstance(error, ResourceExhaustedError)
    assert error.retry_after == 1.25


def test_a_retry_delay_in_the_past_is_none_at_all() -> None:
    error = status_error(status("RESOURCE_EXHAUSTED", "full", retry=-5.0))
    assert isinstance(error, ResourceExhaustedError)
    assert error.retry_after == 0.0


@given(st.binary(max_size=60))
def test_details_of_any_bytes_are_an_error_of_the_project(details: bytes) -> None:
    error = call_error("UNKNOWN", "odd", [("grpc-status-details-bin", details)], "host:1")
    assert isinstance(error, ImagekinError)


@given(st.floats(0, 60), st.integers(1, 10_000), st.floats(0, 1), st.floats(0, 100))
def test_a_full_queue_is_never_tried_sooner_than_asked_nor_after_the_deadline(
    asked: float, attempt: int, jitter: float, left: float
) -> None:
    error = ResourceExhaustedError("full", retry_after=asked)
    delay = POLICY.delay(error, attempt, idempotent=False, left=left, jitter=lambda: jitter)
    if delay is None:
        assert left <= asked + POLICY.longest
    else:
        assert asked <= delay < left


@given(st.integers(1, 10), st.booleans(), st.floats(0, 1))
def test_an_unreachable_server_is_tried_a_few_times_and_only_when_harmless(
    attempt: int, idempotent: bool, jitter: float
) -> None:
    delay = POLICY.delay(UnavailableError("gone"), attempt, idempotent=idempotent, left=60.0, jitter=lambda: jitter)
    if not idempotent or attempt >= POLICY.attempts:
        assert delay is None
    else:
        assert delay is not None
        assert 0 < delay <= POLICY.longest


@pytest.mark.parametrize("error", [NotFoundError("no"), InvalidArgumentError("no"), ResourceExhaustedError("no")])
def test_what_cannot_get_better_is_not_tried_again(error: ImagekinError) -> None:
    assert POLICY.delay(error, 1, idempotent=True, left=60.0) is None


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("Failed to connect to remote host: Connection refused", "--data-dir"),
        ("Failed parsing HTTP/2 (Trying to connect an http1.x server (HTTP status 404))", "this port speaks HTTP"),
        ("Socket closed", "does it want TLS"),
        ("Ssl handshake failed", "certificate is expired"),
    ],
)
def test_a_server_that_cannot_be_reached_is_told_by_what_to_do(message: str, hint: str) -> None:
    error = call_error("UNAVAILABLE", message, None, "host:1")
    assert isinstance(error, UnavailableError)
    assert hint in str(error)
