"""Callers take turns in threads, whatever each of them has waiting."""

import threading
from collections.abc import Callable
from contextvars import copy_context

import pytest

from imagekin.serving.transport.callers import CALLER, Caller
from imagekin.serving.transport.fair_threads import FairThreads


def submit_as(caller: Caller, threads: FairThreads, call: Callable[[], object]) -> object:
    """Submit a call in the name of a caller, and return its future."""

    def submit() -> object:
        CALLER.set(caller)
        return threads.submit(call)

    return copy_context().run(submit)


@pytest.mark.parametrize("other", [Caller("small", "b"), Caller("greedy", "b")], ids=["caller", "connection"])
def test_whoever_has_thousands_of_calls_waiting_is_overtaken(other: Caller) -> None:
    threads, gate = FairThreads(1, "test"), threading.Event()
    done: list[str] = []
    submit_as(Caller("greedy", "a"), threads, lambda: gate.wait(10))
    for _ in range(3000):
        submit_as(Caller("greedy", "a"), threads, lambda: done.append("greedy"))
    for _ in range(3):
        submit_as(other, threads, lambda: done.append("small"))
    gate.set()
    threads.shutdown()
    assert len(done) == 3003
    # One of each in turn.
    assert [place for place, name in enumerate(done) if name == "small"][-1] <= 6


def test_results_and_errors_come_back_and_what_is_cancelled_does_not_run() -> None:
    threads, gate, ran = FairThreads(1, "test"), threading.Event(), threading.Event()
    held = threads.submit(gate.wait, 10)
    gone = threads.submit(ran.set)
    wrong = threads.submit(int, "no number")
    assert gone.cancel()
    gate.set()
    assert held.result(10)
    with pytest.raises(ValueError, match="no number"):
        wrong.result(10)
    assert threads.submit(divmod, 7, 2).result(10) == (3, 1)
    assert not ran.is_set()
    threads.shutdown()


def test_closing_runs_what_waits_unless_it_is_to_be_cancelled() -> None:
    for cancel in (False, True):
        threads, gate, ran = FairThreads(1, "test"), threading.Event(), threading.Event()
        threads.submit(gate.wait, 10)
        waiting = threads.submit(ran.set)
        threads.shutdown(wait=False, cancel_futures=cancel)
        gate.set()
        threads.shutdown()
        assert waiting.cancelled() is cancel
        assert ran.is_set() is not cancel
