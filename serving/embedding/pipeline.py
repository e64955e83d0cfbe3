"""Turn image files into embeddings: decode, batch and infer in threads, one pipeline per model.

The event loop hands over one `Work` per request and is woken once, when all its images are done. Every thread both
decodes and infers: it decodes images as their callers take turns, and infers as soon as the decoded images make a batch
that suits the length of the queue, or no file is left to decode. No thread waits for a batch to fill. So a single image
stays in one thread all the way, and decoding and inference share the cores as needed. At most two batches of pixels
wait, which bounds the memory when inference is slower than decoding.

Large pictures hold nobody up. A decoded image waits for the decoding of others no longer than inference of a batch
takes. Decoding cannot be interrupted, so there is one more thread: while all others decode large pictures, it decodes
small ones.
"""

import asyncio
import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue

from imagekin.errors import DeadlineExceededError, ResourceExhaustedError
from imagekin.serving.embedding.admission import Admission, Load
from imagekin.serving.embedding.costs import decoding_seconds
from imagekin.serving.embedding.image_jobs import DecodedImage, EmbedOutcome, Ended, File, Source, Work
from imagekin.serving.embedding.stages import Runner, Stages
from imagekin.serving.observability.metrics import Metrics
from imagekin.serving.settings import Limits
from imagekin.serving.transport.callers import CALLER
from imagekin.serving.transport.turns import Turns

_IMAGE_SECONDS = 0.002
# Longer than many small requests take, which are so served one after the other, and too short to hold others up.
_TURN_SECONDS = 0.1
# The further thread decodes what takes at most this part of the quickest that the others do.
_SMALL = 0.25


class Lease:
    """Count the blocks that use a pipeline, so that it is closed after them. For the event loop only."""

    def __init__(self) -> None:
        self._within = 0
        self._ended: asyncio.Event | None = None

    def __enter__(self) -> None:
        self._within += 1

    def __exit__(self, *error: object) -> None:
        self._within -= 1
        if self._ended is not None and not self._within:
            self._ended.set()

    async def wait(self) -> None:
        """Wait until the last block has ended; none may begin meanwhile."""
        if self._within:
            self._ended = asyncio.Event()
            await self._ended.wait()


class Pipeline:
    """Embed images with one model.

    Args:
        runner: the model.
        limits: ceilings.
        workers: threads; at least `sessions`. One more decodes small images while all of them decode large ones.
        max_batch: images of one inference.
        sessions: inferences at one time.
        metrics: records the stages; None records nothing.
        image_seconds: what an image costs apart from its decoding.

    Attributes:
        admission: limits the queue.
    """

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        *,
        workers: int,
        max_batch: int,
        sessions: int = 1,
        metrics: Metrics | None = None,
        image_seconds: float = _IMAGE_SECONDS,
    ) -> None:
        self._stages = Stages(runner, limits, metrics)
        self.admission = Admission(limits)
        self._workers = max(workers, sessions)
        self._max_batch = max_batch
        self._max_pixels = limits.max_pixels
        self._image_seconds = image_seconds
        self._metrics = metrics
        self._lease = Lease()
        self._requests = itertools.count()
        # Guards the eight attributes below and `Work.left`.
        self._lock = threading.Lock()
        self._files: Turns[File] = Turns(_TURN_SECONDS)
        self._waiting = 0
        # Decoded images with the seconds that decoding has taken, and the sum of these; both as guessed.
        self._pixels: deque[tuple[DecodedImage, float]] = deque()
        self._decoded_seconds = 0.0
        # Seconds that each decoding in progress takes, as guessed, and 0 for each inference.
        self._running: list[float] = []
        self._sessions = self._all_sessions = sessions
        self._idle = 0
        self._closing = False
        # An idle thread waits for a token; `_wake` puts one in for each thread that it wakes.
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._arrived = 0
        self._threads = [
            threading.Thread(target=self._loop, name=f"pipeline-{number}", daemon=True)
            for number in range(self._workers + 1)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Number of images waiting or being processed."""
        return self.admission.queued

    @property
    def queued_bytes(self) -> int:
        """Bytes of these images."""
        return self.admission.queued_bytes

    def leased(self) -> Lease:
        """Keep the pipeline open for the length of a `with` block."""
        return self._lease

    async def retire(self) -> None:
        """Close the pipeline once the last lease has ended; none may begin meanwhile."""
        await self._lease.wait()
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    async def embed(
        self,
        images: Sequence[Source],
        *,
        timeout: float | None = None,
        hashes: bool = False,
        thumbnail: int = 0,
        patient: bool = False,
    ) -> list[EmbedOutcome]:
        """Embed the images of one request.

        Args:
            images: image files, or pixels uint8 [H, W, 3] of the model's own size.
            timeout: seconds after which the caller stops waiting; None for never.
            hashes: fill in the content hashes.
            thumbnail: pixels of the longer side of thumbnails to make, 0 for none.
            patient: wait for room in the queue instead of failing, as bulk streams do.

        Returns:
            The embedding or the error of each image.

        Raises:
            ResourceExhaustedError: the queue is full.
            DeadlineExceededError: the time is up.
        """
        return await (await self.begin(images, timeout=timeout, hashes=hashes, thumbnail=thumbnail, patient=patient))

    async def begin(
        self,
        images: Sequence[Source],
        *,
        timeout: float | None = None,
        hashes: bool = False,
        thumbnail: int = 0,
        patient: bool = False,
    ) -> asyncio.Future[list[EmbedOutcome]]:
        """Queue the images of one request and return the future of their results; cancelling it drops them.

        Arguments and errors are those of `embed`; DeadlineExceededError is set on the future.
        """
        work = Work(images, None if timeout is None else time.monotonic() + timeout, hashes, thumbnail)
        if not images:
            work.done.set_result([])
            return work.done
        costs = [self._image_seconds + decoding_seconds(image, self._max_pixels) for image in images]
        work.load, work.path = load, path = (
            Load(len(images), work.size, sum(costs)),
            (*CALLER.get()[:2], next(self._requests)),
        )
        if patient:
            await self.admission.wait_for_room(load)
        elif (refusal := self.admission.refusal(path, load, timeout)) is not None:
            if self._metrics is not None:
                self._metrics.rejected("queue_full")
            raise refusal
        # The request leaves the queue with its last image, even if nobody waits for it by then.
        self.admission.enter(path, load)
        with self._lock:
            for position, cost in enumerate(costs):
                self._files.push(path, (work, position), cost)
            self._waiting += len(costs)
        # Threads are woken once for all requests of this turn of the event loop; woken sooner, they would only compete
        # with the loop for the GIL.
        if not self._arrived:
            work.loop.call_soon(self._announce)
        self._arrived += len(images)
        return work.done

    def refusal(self, timeout: float | None) -> ResourceExhaustedError | None:
        """Return the error for one more image of the call in progress, None when there is room for it.

        Args:
            timeout: seconds after which the caller stops waiting; None for never.
        """
        return self.admission.refusal((*CALLER.get()[:2], None), Load(1, 0, self._image_seconds), timeout)

    def close(self) -> None:
        """Stop the threads once the queue is empty. Blocks."""
        with self._lock:
            self._closing = True
            self._wake(len(self._threads))
        for thread in self._threads:
            thread.join()

    def _leave(self, works: Sequence[Work]) -> None:
        """Set the results of complete requests, on their event loop."""
        for work in works:
            wanted = not (work.done.cancelled() or work.is_late())
            self.admission.leave(work.path, work.load, wanted=wanted)
            if work.done.cancelled():
                continue
            outcomes = [outcome for outcome in work.outcomes if outcome is not None]
            if work.failure is not None:
                work.done.set_exception(work.failure)
            elif len(outcomes) == len(work.outcomes):
                work.done.set_result(outcomes)
            else:
                if self._metrics is not None:
                    self._metrics.rejected("deadline")
                work.done.set_exception(DeadlineExceededError("the deadline passed while the images were queued"))

    def _announce(self) -> None:
        """Wake threads for the images that have arrived in this turn of the event loop."""
        with self._lock:
            self._wake(self._arrived)
        self._arrived = 0

    def _wake(self, count: int) -> None:
        """Wake up to `count` idle threads. Call it with the lock held."""
        count = min(count, self._idle)
        self._idle -= count
        for _ in range(count):
            self._tokens.put(None)

    def _loop(self) -> None:
        cost = None
        while (found := self._next(cost)) is not None:
            task, cost = found
            if isinstance(task, list):
                self._answer(self._end(self._infer(task)))
            else:
                entry = self._stages.decode(*task)
                if isinstance(entry, DecodedImage):
                    with self._lock:
                        # This thread takes the next task itself, so no other one has to be woken.
                        self._pixels.append((entry, cost - self._image_seconds))
                        self._decoded_seconds += cost - self._image_seconds
                else:
                    self._answer(self._end([entry]))
                del entry
            # Hold no image of the last request while waiting for the next one.
            del task, found

    def _next(self, ended: float | None) -> "tuple[File | list[DecodedImage], float] | None":
        """Wait for the next task, a file to decode or a batch to infer; None when the pipeline is closed.

        Args:
            ended: cost of the thread's last task, None when it had none.

        Returns:
            The task and its cost, which is 0 for a batch.
        """
        with self._lock:
            if ended is not None:
                self._running.remove(ended)
        while True:
            with self._lock:
                if self._may_infer():
                    self._sessions -= 1
                    return self._began(self._batch(), 0.0)
                if self._may_decode():
                    self._waiting -= 1
                    return self._began(*self._files.pop())
                if self._closing and not self._pixels and not self._files:
                    self._wake(len(self._threads))
                    return None
                self._idle += 1
            self._tokens.get()

    def _began(self, task: "File | list[DecodedImage]", cost: float) -> "tuple[File | list[DecodedImage], float]":
        """Note that a task has begun, and wake a thread for the next one. Call it with the lock held."""
        self._running.append(cost)
        if self._idle and (self._may_infer() or self._may_decode()):
            self._wake(1)
        return task, cost

    def _may_infer(self) -> bool:
        ready = len(self._pixels)
        if not (ready and self._sessions and self._has_room(0.0)):
            return False
        return ready >= self._enough(ready) or not self._files or self._has_waited()

    def _may_decode(self) -> bool:
        return bool(self._files) and len(self._pixels) < 2 * self._max_batch and self._has_room(self._files.next_cost())

    def _has_room(self, cost: float) -> bool:
        """Return whether one more thread may begin a task of so many seconds."""
        running = len(self._running)
        return running < self._workers or (running == self._workers and cost < _SMALL * min(self._running))

    def _has_waited(self) -> bool:
        """Return whether the decoded images would wait for the next file longer than inference of a batch takes.

        What decoding takes so long for gains nothing from a batch, and may be of a caller with large pictures, for
        which those of others are not to wait.
        """
        next_seconds = self._files.next_cost() - self._image_seconds
        return self._decoded_seconds / self._workers + next_seconds > self._max_batch * self._image_seconds

    def _batch(self) -> list[DecodedImage]:
        """Take the decoded images that have waited longest."""
        taken = [self._pixels.popleft() for _ in range(min(len(self._pixels), self._max_batch))]
        # Sums of fractions come back to zero only roughly.
        self._decoded_seconds -= sum(seconds for _, seconds in taken) if self._pixels else self._decoded_seconds
        return [entry for entry, _ in taken]

    def _enough(self, ready: int) -> int:
        """Return how many decoded images make a batch: a session's share of all that wait.

        A long queue needs the throughput of large batches. In a short one, the image that was decoded first would only
        wait for the others.
        """
        share = (ready + self._waiting) // self._all_sessions
        return min(max(share, 1), self._max_batch)

    def _infer(self, batch: list[DecodedImage]) -> list[Ended]:
        """Infer a batch, then wake threads for the next one."""
        ended = self._stages.infer(batch)
        with self._lock:
            self._sessions += 1
            if self._closing:
                self._wake(len(self._threads))
            elif self._pixels or self._files:
                self._wake(1)
        return ended

    def _end(self, ended: Sequence[Ended]) -> list[Work]:
        """Store results and return the requests that are complete."""
        complete: list[Work] = []
        with self._lock:
            for work, position, outcome in ended:
                work.outcomes[position] = outcome
                work.left -= 1
                if not work.left:
                    complete.append(work)
        return complete

    def _answer(self, complete: Sequence[Work]) -> None:
        """Wake the event loops of complete requests, once each."""
        for loop in {work.loop for work in complete}:
            # A closed loop has no callers left to wake.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._leave, [work for work in complete if work.loop is loop])
