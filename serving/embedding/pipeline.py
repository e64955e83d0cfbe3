"""Turn image files into embeddings: decode, batch and infer in threads, one pipeline per model.

The event loop hands over one `Work` per request and is woken once, when all its images are done. Every thread both
decodes and infers: it decodes images as their callers take turns, and infers as soon as the decoded images make a batch
that suits the length of the queue, or no file is left to decode. No thread waits for a batch to fill. So a single image
stays in one thread all the way, and decoding and inference share the cores as needed. At most two batches of pixels
wait, which bounds the memory when inference is slower than decoding.

Only large pictures are decoded by further threads, see `imagekin.serving.embedding.lanes`, and no batch that holds a
small one waits for them.
"""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Sequence

from imagekin.errors import DeadlineExceededError, ResourceExhaustedError
from imagekin.serving.embedding.admission import Admission, Load
from imagekin.serving.embedding.costs import decoding_seconds
from imagekin.serving.embedding.image_jobs import DecodedImage, EmbedOutcome, Ended, File, Source, Work
from imagekin.serving.embedding.lanes import Lane, give_way
from imagekin.serving.embedding.stages import Runner, Stages
from imagekin.serving.observability.metrics import Metrics
from imagekin.serving.settings import Limits
from imagekin.serving.transport.callers import CALLER

_IMAGE_SECONDS = 0.002
# A picture is large when decoding it takes so much longer than inference, and this long at least.
_LARGE = 2
_LEAST_LARGE_SECONDS = 0.02
# Of large pictures a batch waits for so many at most: with more it gains little, and a small one may come meanwhile.
_MOST_LARGE = 8
# However many small ones wait, one of so many images is a large one.
_FOR_LARGE = 4


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
        workers: threads, at least `sessions`; as many more decode large pictures.
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
        self._max_batch = max_batch
        self._max_pixels = limits.max_pixels
        self._image_seconds = image_seconds
        self._metrics = metrics
        self._lease = Lease()
        self._requests = itertools.count()
        self._large_from = max(_LARGE * image_seconds, _LEAST_LARGE_SECONDS)
        # Guards the attributes below and `Work.left`.
        self._lock = threading.Lock()
        self._small, self._large = Lane(), Lane()
        self._sessions = self._all_sessions = sessions
        self._closing = False
        self._all_decoded = False
        # Places of batches that large pictures may have before small ones.
        self._for_large = 0.0
        self._arrived = 0
        workers = max(workers, sessions)
        self._threads = [
            threading.Thread(target=self._loop, name=f"pipeline-{number}", daemon=True) for number in range(workers)
        ]
        self._large_threads = [
            threading.Thread(target=self._decode_large, name=f"large-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in (*self._threads, *self._large_threads):
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
        decoding = [decoding_seconds(image, self._max_pixels) for image in images]
        work.load, work.path = load, path = (
            Load(len(images), work.size, sum(decoding) + len(images) * self._image_seconds),
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
            for position, seconds in enumerate(decoding):
                lane = self._large if seconds > self._large_from else self._small
                lane.push(path, (work, position), self._image_seconds + seconds)
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
            self._large.wake(len(self._large_threads))
        for thread in self._large_threads:
            thread.join()
        with self._lock:
            self._all_decoded = True
            self._small.wake(len(self._threads))
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
            self._small.wake(self._arrived)
            self._large.wake(self._large.waiting)
        self._arrived = 0

    def _loop(self) -> None:
        while (task := self._next()) is not None:
            if isinstance(task, list):
                self._answer(self._end(self._infer(task)))
            else:
                # This thread takes the next task itself, so no other one has to be woken.
                self._decode(task, self._small)
            # Hold no image of the last request while waiting for the next one.
            del task

    def _decode_large(self) -> None:
        give_way()
        while (file := self._next_large()) is not None:
            self._decode(file, self._large)
            with self._lock:
                self._small.wake(1)
            del file

    def _next(self) -> "File | list[DecodedImage] | None":
        """Wait for the next task: a file to decode or a batch to infer, None when the pipeline is closed."""
        small, large = self._small, self._large
        while True:
            with self._lock:
                if self._sessions and self._is_due():
                    self._sessions -= 1
                    batch = self._batch()
                    small.wake(small.waiting)
                    large.wake(large.waiting)
                    return batch
                if small.waiting and len(small.decoded) < 2 * self._max_batch:
                    return small.pop()
                if self._all_decoded and not (small.waiting or small.decoded or large.decoded):
                    return None
                small.rest()
            small.wait()

    def _next_large(self) -> File | None:
        """Wait for the next large picture to decode, None when the pipeline is closed."""
        large = self._large
        while True:
            with self._lock:
                if large.waiting and len(large.decoded) < self._max_batch:
                    return large.pop()
                if self._closing and not large.waiting:
                    # Those that waited for room among the decoded ones.
                    large.wake(len(self._large_threads))
                    return None
                large.rest()
            large.wait()

    def _decode(self, file: File, lane: Lane) -> None:
        """Decode an image; it waits for inference then, which whoever calls sees to."""
        entry = self._stages.decode(*file)
        if isinstance(entry, DecodedImage):
            with self._lock:
                lane.decoded.append(entry)
        else:
            self._answer(self._end([entry]))

    def _is_due(self) -> bool:
        """Return whether the decoded images are to be inferred, with no more decoded before."""
        small, large = self._small, self._large
        if small.decoded:
            ready = len(small.decoded) + len(large.decoded)
            return not small.waiting or ready >= self._enough(ready + small.waiting)
        ready = len(large.decoded)
        return 0 < ready >= min(self._enough(ready + large.waiting), _MOST_LARGE) and not small.waiting

    def _batch(self) -> list[DecodedImage]:
        """Take decoded images, small ones first."""
        small, large = self._small.decoded, self._large.decoded
        # Saved up over several batches when they are small, else nothing would be left for large ones.
        share = self._max_batch / _FOR_LARGE
        self._for_large = min(self._for_large + share, max(share, 1.0)) if large else 0.0
        most_large = max(self._max_batch - len(small), int(self._for_large))
        batch = [large.popleft() for _ in range(min(len(large), most_large))]
        self._for_large = max(self._for_large - len(batch), 0.0)
        return [small.popleft() for _ in range(min(len(small), self._max_batch - len(batch)))] + batch

    def _enough(self, images: int) -> int:
        """Return how many decoded images make a batch: a session's share of all that wait.

        A long queue needs the throughput of large batches. In a short one, the image that was decoded first would only
        wait for the others.
        """
        return min(max(images // self._all_sessions, 1), self._max_batch)

    def _infer(self, batch: list[DecodedImage]) -> list[Ended]:
        """Infer a batch, then wake threads for the next one."""
        ended = self._stages.infer(batch)
        with self._lock:
            self._sessions += 1
            if self._all_decoded:
                self._small.wake(len(self._threads))
            elif self._small.decoded or self._large.decoded or self._small.waiting:
                self._small.wake(1)
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
