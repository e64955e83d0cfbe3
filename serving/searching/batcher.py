"""Batch concurrent searches of one collection into one call.

An index answers 64 queries together several times faster than one by one. While a search thread is free, the calls of
one turn of the event loop start at once and together, so that images embedded in one batch are searched in one, too.
Otherwise calls queue, and the next free thread takes all of one kind. No call waits for a batch to fill.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import DeadlineExceededError, ResourceExhaustedError
from imagekin.serving.observability.metrics import Metrics

Vectors = NDArray[np.float32]
Exclusion = TypeVar("Exclusion")
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Job(Generic[Exclusion, Answer]):
    """Queries of one call, float32 [N, D], and what the answer to each leaves out."""

    kind: Hashable
    ask: Callable[[Vectors, Sequence[Exclusion]], Sequence[Answer]]
    queries: Vectors
    exclusions: Sequence[Exclusion]
    began: float
    deadline: float | None
    answer: "asyncio.Future[Sequence[Answer]]"


class SearchBatcher:
    """Batch the searches of one collection. For the event loop only; the searches run in threads.

    Args:
        run: runs a search in a thread: called with the search, the queries and the exclusions.
        workers: searches of this collection at one time.
        max_batch: queries of one search; a call that has more is searched alone.
        max_queued: queries waiting; more are refused.
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
        self._waiting: deque[_Job[object, object]] = deque()
        self._queued = 0
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
        if self._queued and self._queued + len(queries) > self._max_queued:
            if self._metrics is not None:
                self._metrics.rejected("searches_full")
            raise ResourceExhaustedError("too many searches wait: try again later", retry_after=0.1)
        began = time.monotonic()
        deadline = None if timeout is None else began + timeout
        answer: asyncio.Future[Sequence[Answer]] = asyncio.get_running_loop().create_future()
        job = _Job(kind, ask, queries, exclusions, began, deadline, answer)
        self._waiting.append(job)  # type: ignore[arg-type]  # each job's own types never mix: `kind` keeps them apart
        self._queued += len(queries)
        if not self._starting:
            self._starting = True
            answer.get_loop().call_soon(self._start)
        return await answer

    def _start(self) -> None:
        self._starting = False
        while self._free and self._waiting:
            jobs = self._take()
            if not jobs:
                continue
            self._free -= 1
            task = asyncio.get_running_loop().create_task(self._run(jobs))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _take(self) -> list[_Job[object, object]]:
        """Take the oldest job that is still waited for, and those of its kind that fit into the same batch."""
        taken: list[_Job[object, object]] = []
        passed: list[_Job[object, object]] = []
        size = 0
        while self._waiting and size < self._max_batch:
            job = self._waiting.popleft()
            if job.answer.cancelled():
                self._queued -= len(job.queries)
            elif job.deadline is not None and time.monotonic() >= job.deadline:
                self._queued -= len(job.queries)
                if self._metrics is not None:
                    self._metrics.rejected("deadline")
                job.answer.set_exception(DeadlineExceededError("the deadline passed before the search began"))
            elif not taken or (job.kind == taken[0].kind and size + len(job.queries) <= self._max_batch):
                taken.append(job)
                size += len(job.queries)
            else:
                passed.append(job)
        self._waiting.extendleft(reversed(passed))
        self._queued -= size
        return taken

    async def _run(self, jobs: list[_Job[object, object]]) -> None:
        queries = jobs[0].queries if len(jobs) == 1 else np.concatenate([job.queries for job in jobs])
        exclusions = [exclusion for job in jobs for exclusion in job.exclusions]
        start = time.monotonic()
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
