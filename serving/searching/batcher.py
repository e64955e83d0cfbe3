"""Batch concurrent searches of one collection into one call.

An index answers 64 queries together several times faster than one by one. While a search thread is free, the calls of
one turn of the event loop start at once and together, so that images embedded in one batch are searched in one, too.
Otherwise calls queue, and the next free thread takes those of one kind, of each caller one in turn: first comes whoever
has had the fewest queries answered. No call waits for a batch to fill.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import DeadlineExceededError, ResourceExhaustedError
from imagekin.serving.observability.metrics import Metrics
from imagekin.serving.transport.callers import CALLER, Caller, most_of_one

Vectors = NDArray[np.float32]
Exclusion = TypeVar("Exclusion")
Answer = TypeVar("Answer")
# Callers of whom nothing waits are forgotten when there are so many beside twice as many of whom something does.
_MOST_ABSENT = 64


@dataclass(slots=True)
class _Job(Generic[Exclusion, Answer]):
    """Queries of one call, float32 [N, D], and what the answer to each leaves out."""

    caller: Caller
    kind: Hashable
    ask: Callable[[Vectors, Sequence[Exclusion]], Sequence[Answer]]
    queries: Vectors
    exclusions: Sequence[Exclusion]
    began: float
    deadline: float | None
    answer: "asyncio.Future[Sequence[Answer]]"


@dataclass(slots=True)
class _Line:
    """One caller's calls that wait.

    Attributes:
        spent: queries taken from it, as a line that is new begins with those of the line that is next.
        queued: queries waiting.
        jobs: the calls.
    """

    spent: int
    queued: int = 0
    jobs: deque[_Job[object, object]] = field(default_factory=deque)


class SearchBatcher:
    """Batch the searches of one collection. For the event loop only; the searches run in threads.

    Args:
        run: runs a search in a thread: called with the search, the queries and the exclusions.
        workers: searches of this collection at one time.
        max_batch: queries of one search; a call that has more is searched alone.
        max_queued: queries waiting; more are refused, and so are more than three quarters of them from one caller.
        metrics: records the stages; None records nothing.
    """

    def __init__(
        self,
        run: Callable[..., Awaitable[Any]],
        *,
        workers: int,
        max_batch: int,
        max_queued: int,
        metrics: Metrics | None = None,
    ) -> None:
        self._in_thread = run
        self._free = workers
        self._max_batch = max_batch
        self._max_queued = max_queued
        self._metrics = metrics
        self._lines: dict[str, _Line] = {}
        self._queued = 0
        self._spent = 0  # of the line that was next last
        self._starting = False
        self._running: set[asyncio.Task[None]] = set()

    @property
    def queued(self) -> int:
        """Number of queries waiting."""
        return self._queued

    async def ask(
        self,
        kind: Hashable,
        ask: Callable[[Vectors, Sequence[Exclusion]], Sequence[Answer]],
        queries: Vectors,
        exclusions: Sequence[Exclusion],
        *,
        timeout: float | None = None,
    ) -> Sequence[Answer]:
        """Search the collection, in one batch with concurrent calls of the same kind.

        Args:
            kind: calls of equal kind may share a batch.
            ask: the search; called in a thread with queries [M, D] and M exclusions, returns M answers.
            queries: float32 [N, D].
            exclusions: what the answer to each query leaves out.
            timeout: seconds after which the caller stops waiting; None for never.

        Returns:
            N answers.

        Raises:
            ResourceExhaustedError: too many queries wait.
            DeadlineExceededError: the time was up before the search began.
            ImagekinError: the search failed.
        """
        caller, count = CALLER.get(), len(queries)
        line = self._line(caller.name)
        most = most_of_one(self._max_queued)
        if (self._queued and self._queued + count > self._max_queued) or (line.queued and line.queued + count > most):
            if self._metrics is not None:
                self._metrics.rejected("searches_full")
            raise ResourceExhaustedError("too many searches wait: try again later", retry_after=0.1)
        began = time.monotonic()
        deadline = None if timeout is None else began + timeout
        answer: asyncio.Future[Sequence[Answer]] = asyncio.get_running_loop().create_future()
        job = _Job(caller, kind, ask, queries, exclusions, began, deadline, answer)
        line.jobs.append(job)  # type: ignore[arg-type]  # each job's own types never mix: `kind` keeps them apart
        line.queued += count
        self._queued += count
        if not self._starting:
            self._starting = True
            answer.get_loop().call_soon(self._start)
        return await answer

    def _line(self, name: str) -> _Line:
        line = self._lines.get(name)
        if line is None:
            if not self._queued:
                # Nobody waits: all begin anew.
                self._lines.clear()
            elif len(self._lines) > _MOST_ABSENT + 2 * sum(bool(line.jobs) for line in self._lines.values()):
                self._lines = {name: line for name, line in self._lines.items() if line.jobs}
            line = self._lines[name] = _Line(self._spent)
        return line

    def _start(self) -> None:
        self._starting = False
        while self._free and self._queued:
            jobs = self._take()
            if not jobs:
                continue
            self._free -= 1
            task = asyncio.get_running_loop().create_task(self._run(jobs))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _take(self) -> list[_Job[object, object]]:
        """Take the next call that is still waited for, and those of its kind that fit into the same batch."""
        lines = sorted((line for line in self._lines.values() if line.jobs), key=lambda line: line.spent)
        first = next((job for line in lines if (job := self._first(line)) is not None), None)
        if first is None:
            return []
        seen = [(line, self._look(line, first.kind)) for line in lines]
        taken: dict[int, _Job[object, object]] = {}
        size = 0
        for job in chain.from_iterable(
            zip_longest(*([job for job in jobs if job.kind == first.kind] for _, jobs in seen))
        ):
            if job is not None and (not taken or size + len(job.queries) <= self._max_batch):
                taken[id(job)] = job
                size += len(job.queries)
        self._spent = self._lines[first.caller.name].spent
        for line, jobs in seen:
            line.jobs.extendleft(job for job in reversed(jobs) if id(job) not in taken)
            count = sum(len(job.queries) for job in jobs if id(job) in taken)
            line.queued -= count
            line.spent = max(line.spent, self._spent) + count
        self._queued -= size
        return list(taken.values())

    def _first(self, line: _Line) -> _Job[object, object] | None:
        """Return a line's first call that is still waited for, and drop those before it."""
        while line.jobs and self._is_gone(line, line.jobs[0]):
            line.jobs.popleft()
        return line.jobs[0] if line.jobs else None

    def _look(self, line: _Line, kind: Hashable) -> list[_Job[object, object]]:
        """Take the calls of a line out up to those of a kind that fill a batch, and return those still waited for."""
        seen: list[_Job[object, object]] = []
        size = 0
        while line.jobs and size < self._max_batch:
            job = line.jobs.popleft()
            if not self._is_gone(line, job):
                seen.append(job)
                if job.kind == kind and (not size or size + len(job.queries) <= self._max_batch):
                    size += len(job.queries)
        return seen

    def _is_gone(self, line: _Line, job: _Job[object, object]) -> bool:
        """Return whether a call is not waited for any more, and count it out then."""
        if not job.answer.cancelled():
            if job.deadline is None or time.monotonic() < job.deadline:
                return False
            if self._metrics is not None:
                self._metrics.rejected("deadline")
            job.answer.set_exception(DeadlineExceededError("the deadline passed before the search began"))
        line.queued -= len(job.queries)
        self._queued -= len(job.queries)
        return True

    async def _run(self, jobs: list[_Job[object, object]]) -> None:
        queries = jobs[0].queries if len(jobs) == 1 else np.concatenate([job.queries for job in jobs])
        exclusions = [exclusion for job in jobs for exclusion in job.exclusions]
        start = time.monotonic()
        # The thread is on the account of whoever came first.
        CALLER.set(jobs[0].caller)
        try:
            answers = await self._in_thread(jobs[0].ask, queries, exclusions)
        except Exception as error:
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(error)
        else:
            at = 0
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_result(answers[at : at + len(job.queries)])
                at += len(job.queries)
        finally:
            self._free += 1
            self._start()
            if self._metrics is not None:
                for job in jobs:
                    self._metrics.stage("search_queue", start - job.began)
                self._metrics.stage("search", time.monotonic() - start)
                self._metrics.batch("search", len(queries))
