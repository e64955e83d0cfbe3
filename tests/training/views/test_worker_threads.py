"""Pieces of work side by side, each on one thread."""

from collections.abc import Iterator
from functools import partial
from threading import get_ident

import pytest
import torch

from imagekin.training.views.worker_threads import WorkerThreads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Give torch two threads for a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_each_task_has_one_thread_and_the_others_keep_theirs() -> None:
    workers = WorkerThreads()
    seen: list[tuple[int, int]] = []

    def task() -> None:
        torch.ones(2**18).sum()
        seen.append((get_ident(), torch.get_num_threads()))

    for _ in range(2):
        workers.run([task] * 8)
    assert len(seen) == 16
    assert {threads for _, threads in seen} == {1}
    assert get_ident() not in {thread for thread, _ in seen}
    assert torch.get_num_threads() == 2


def test_a_single_task_has_all_threads() -> None:
    seen: list[int] = []
    WorkerThreads().run([lambda: seen.append(torch.get_num_threads())])
    assert seen == [2]


def test_without_a_second_thread_the_caller_does_the_work() -> None:
    torch.set_num_threads(1)
    seen: list[int] = []
    WorkerThreads().run([lambda: seen.append(get_ident())] * 3)
    assert seen == [get_ident()] * 3


def test_what_a_task_raises_is_raised() -> None:
    done: list[int] = []

    def task(number: int) -> None:
        if number == 1:
            raise ValueError("the second")
        done.append(number)

    workers = WorkerThreads()
    with pytest.raises(ValueError, match="the second"):
        workers.run([partial(task, number) for number in range(3)])
    workers.run([partial(task, 5)] * 2)
    assert done.count(5) == 2
