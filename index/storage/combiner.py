"""Batch concurrent calls of many threads into one.

A query that finds nobody at work begins at once. Those that come meanwhile wait for a place, and whoever gets it takes
all that wait along: many queries cost little more than one, because reading the vectors is what takes the time. Clients
that ask one query after the other were answered together, so they come back together; a pass waits for them, but no
longer than a quarter of what the pass before took, and never when only one client asks.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")

_MOST = 64
# How long to wait for clients that have just been answered, as a share of their pass.
_LINGER = 0.25


@dataclass(slots=True, eq=False)
class _Asked(Generic[Question, Answer]):
    """A question and what became of it; `ready` is set when it has its answer, or its turn to work."""

    question: Question
    ready: threading.Event = field(default_factory=threading.Event)
    done: bool = False
    answer: Answer | None = None
    error: BaseException | None = None


class Combiner(Generic[Question, Answer]):
    """A function of many requests, called from many threads with one each.

    Args:
        work: answers some questions, in their order.
        at_once: threads that work at the same time.
        most: questions that are answered together.
    """

    def __init__(
        self, work: Callable[[Sequence[Question]], Sequence[Answer]], at_once: int = 1, most: int = _MOST
    ) -> None:
        self._work = work
        self._most = most
        self._lock = threading.Lock()
        self._free = at_once
        self._waiting: list[_Asked[Question, Answer]] = []
        # How many came last time, and until when it is worth waiting for as many again.
        self._expected = 1
        self._until = 0.0
        self._complete = threading.Event()

    def ask(self, question: Question) -> Answer:
        """Return the answer; raises what the work raised."""
        own: _Asked[Question, Answer] = _Asked(question)
        with self._lock:
            begin = self._free > 0
            if begin:
                self._free -= 1
            else:
                self._waiting.append(own)
                if len(self._waiting) + 1 >= self._expected:
                    self._complete.set()
        if not begin:
            self._wait(own)
        if not own.done:
            self._lead(own)
        if own.error is not None:
            raise own.error
        assert own.answer is not None  # noqa: S101  the work answers every question
        return own.answer

    def _wait(self, own: _Asked[Question, Answer]) -> None:
        try:
            own.ready.wait()
        except BaseException:  # Ctrl-C
            with self._lock:
                left = own in self._waiting
                if left:
                    self._waiting.remove(own)
            if not left:
                # Somebody answers it, or has handed on a place, which must not be lost.
                own.ready.wait()
                if not own.done:
                    self._lead(own)
            raise

    def _lead(self, own: _Asked[Question, Answer]) -> None:
        """Answer what waits, one's own question with it, and hand the place on."""
        self._linger()
        with self._lock:
            others = self._waiting[: self._most - 1]
            del self._waiting[: self._most - 1]
        batch = [own, *others]
        begun = time.perf_counter()
        try:
            for asked, answer in zip(batch, self._work([asked.question for asked in batch]), strict=True):
                asked.answer = answer
        except BaseException as error:
            for asked in batch:
                asked.error = error
        ended = time.perf_counter()
        with self._lock:
            self._expected = min(len(batch) + len(self._waiting), self._most)
            self._until = ended + _LINGER * (ended - begun)
            following = self._waiting.pop(0) if self._waiting else None
            self._free += following is None
        if following is not None:
            following.ready.set()
        for asked in batch:
            asked.done = True
            asked.ready.set()

    def _linger(self) -> None:
        """Give those who have just been answered a moment to ask again."""
        with self._lock:
            left = self._until - time.perf_counter()
            if left <= 0 or len(self._waiting) + 1 >= self._expected:
                return
            self._complete.clear()
        self._complete.wait(left)
