"""From image files to embeddings: decoding, batching and ONNX Runtime, all in threads; one pipeline per model.

The event loop hands in one `Work` per request and gets one wake-up when all its images are done. In between there is
no event loop. Every thread does both: it decodes images in the order of arrival, and infers once a batch is there that
suits the length of the queue, or no file is left to decode; it never waits for more. So a lone image stays in one
thread all the way, and decoding and inference share the cores as the images need it. At most two batches of pixels
wait, so that they do not pile up when inference is slower than decoding.

Images that cost less than handing them over does (`serving.prices`) are not handed over: the event loop's own thread
does the same with them in one go, as long as nothing waits in front of them.
"""

import asyncio
import contextlib
import hashlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from encoder.errors import DeadlineExceededError, KindredError
from encoder.images import DecodeLimits
from encoder.metadata import Metadata
from encoder.session import Outputs
from serving.admission import Admission
from serving.metrics import Metrics
from serving.prices import Prices
from serving.settings import Limits

Source = bytes | memoryview | NDArray[np.uint8]


class Runner(Protocol):
    """What the pipeline needs of an `encoder.session.Encoder`."""

    metadata: Metadata

    def load_pixels(self, data: bytes | memoryview, limits: DecodeLimits) -> NDArray[np.uint8]:
        """Return an image file's pixels, uint8 [H, W, 3]."""

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return the outputs for pixels, uint8 [N, H, W, 3]."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of one image.

    Attributes:
        vector: float32 [D], unit length.
        logits: float32 [C], None when the model has no linear head.
        content_hash: SHA-256 of the file, empty when it was not asked for.
    """

    vector: NDArray[np.float32]
    logits: NDArray[np.float32] | None
    content_hash: bytes


Outcome = Embedded | KindredError


class Work:
    """The images of one request on their way through the pipeline.

    Args:
        images: image files, or pixels uint8 [H, W, 3] of the model's own size.
        deadline: `time.monotonic()` after which nobody waits for the answer; None for never.
        hashes: fill in the content hashes.
    """

    def __init__(self, images: Sequence[Source], deadline: float | None, hashes: bool) -> None:
        self.images: Sequence[Source] = images
        self.hashes = hashes
        self.size = sum(len(image) if isinstance(image, bytes) else image.nbytes for image in images)
        self.outcomes: list[Outcome | None] = [None] * len(images)
        self.failure: Exception | None = None
        self.began = time.monotonic()
        self.left = len(images)
        self.deadline = deadline
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[list[Outcome]] = self.loop.create_future()

    def is_dead(self) -> bool:
        """Return whether nobody waits for the answer any more, so that no more work may be spent on it."""
        return self.done.cancelled() or self.is_late() or self.failure is not None

    def is_late(self) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


def _bare(error: KindredError) -> KindredError:
    """Return the error without the frames that it came through.

    They hold the request, which is about to hold the error: together they would stay, images and all, until the garbage
    collector comes by.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


# The event loop decodes no image of more bytes or pixels, whatever others have cost: a header tells what one may cost.
_SMALL_BYTES = 16 * 1024
_SMALL_PIXELS = 128 * 128

# A file, as its request and its place there.
File = tuple[Work, int]


class Decoded(NamedTuple):
    """An image on its way to the encoder."""

    work: Work
    position: int
    pixels: NDArray[np.uint8]
    content_hash: bytes
    since: float


# What has become of an image; None when it was dropped.
Ended = tuple[Work, int, Outcome | None]


class Lease:
    """Counts the blocks that are within it. Lives on the event loop.

    Attributes:
        ended: set while there is none.
    """

    def __init__(self) -> None:
        self._within = 0
        self.ended = asyncio.Event()
        self.ended.set()

    def __enter__(self) -> None:
        self._within += 1
        self.ended.clear()

    def __exit__(self, *error: object) -> None:
        self._within -= 1
        if not self._within:
            self.ended.set()


class Pipeline:
    """Embeds images with one model.

    Args:
        runner: the model.
        limits: ceilings.
        workers: threads; at least `sessions`.
        max_batch: images of one inference.
        sessions: inferences at one time.
        metrics: told of the stages; None for nobody.

    Attributes:
        admission: lets requests in or not.
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
    ) -> None:
        self._runner = runner
        self.admission = Admission(limits)
        self._decode_limits = DecodeLimits(max_bytes=limits.max_image_bytes, max_pixels=limits.max_pixels)
        self._small_limits = DecodeLimits(
            max_bytes=min(_SMALL_BYTES, limits.max_image_bytes), max_pixels=min(_SMALL_PIXELS, limits.max_pixels)
        )
        self._prices = Prices()
        self._max_batch = max_batch
        self._metrics = metrics
        self._lease = Lease()
        # Guards the five below and `Work.left`.
        self._lock = threading.Lock()
        self._files: deque[File] = deque()
        self._pixels: deque[Decoded] = deque()
        self._sessions = self._all_sessions = sessions
        self._idle = 0
        self._closing = False
        # An idle thread waits for a token; one is put in for each thread that stops being idle.
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._arrived = 0
        self._threads = [
            threading.Thread(target=self._loop, name=f"pipeline-{number}", daemon=True)
            for number in range(max(workers, sessions))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Images waiting or in work."""
        return self.admission.queued

    @property
    def queued_bytes(self) -> int:
        """Bytes of these images."""
        return self.admission.queued_bytes

    def leased(self) -> "Lease":
        """Keep the pipeline from being retired for the length of a block."""
        return self._lease

    async def retire(self) -> None:
        """Wait until nobody leases the pipeline any more and close it. Nobody may begin to meanwhile."""
        await self._lease.ended.wait()
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    async def embed(
        self, images: Sequence[Source], *, timeout: float | None = None, hashes: bool = False, patient: bool = False
    ) -> list[Outcome]:
        """Embed the images of one request.

        Args:
            images: image files, or pixels uint8 [H, W, 3] of the model's own size.
            timeout: seconds after which the caller stops waiting; None for never.
            hashes: fill in the content hashes.
            patient: wait for room in the queue instead of failing, as bulk streams do.

        Returns:
            For each image its embedding, or why there is none.

        Raises:
            ResourceExhaustedError: the queue is full.
            DeadlineExceededError: the time is up.
        """
        return await (await self.begin(images, timeout=timeout, hashes=hashes, patient=patient))

    async def begin(
        self, images: Sequence[Source], *, timeout: float | None = None, hashes: bool = False, patient: bool = False
    ) -> asyncio.Future[list[Outcome]]:
        """Put the images of one request into the queue and return the answer to come; to cancel it drops them.

        Arguments and errors are those of `embed`; DeadlineExceededError comes as the answer.
        """
        work = Work(images, None if timeout is None else time.monotonic() + timeout, hashes)
        if not images:
            work.done.set_result([])
            return work.done
        if patient:
            await self.admission.wait_for_room(len(images), work.size)
        elif (refusal := self.admission.refusal(len(images), work.size, timeout)) is not None:
            if self._metrics is not None:
                self._metrics.rejected("queue_full")
            raise refusal
        # The request is counted out when its last image has left, wanted or not.
        self.admission.enter(len(images), work.size)
        with self._lock:
            self._files.extend([(work, position) for position in range(len(images))])
        # A thread is woken once for all requests of this turn of the event loop: it would only compete with the loop
        # for the interpreter's lock meanwhile. And what costs little is worked off together.
        if not self._arrived:
            work.loop.call_soon(self._announce)
        self._arrived += len(images)
        return work.done

    def close(self) -> None:
        """Stop the threads after what is queued. Blocks."""
        with self._lock:
            self._closing = True
            self._wake(len(self._threads))
        for thread in self._threads:
            thread.join()

    def _leave(self, works: Sequence[Work]) -> None:
        """Answer these requests, on their event loop."""
        for work in works:
            wanted = not (work.done.cancelled() or work.is_late())
            self.admission.leave(len(work.images), work.size, wanted=wanted)
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
        """See to the files that have arrived since the last turn of the event loop."""
        arrived, self._arrived = self._arrived, 0
        with self._lock:
            if not (files := self._take_cheap(arrived)):
                self._wake(arrived)
        if files:
            self._work_off(files)

    def _take_cheap(self, arrived: int) -> list[File]:
        """Take the files that have just arrived if they cost less than to wake a thread. Called with the lock held.

        A session is taken with them. None are when others wait, or an inference would have to wait.
        """
        if self._pixels or not self._sessions or not 0 < len(self._files) <= min(arrived, self._max_batch):
            return []
        decoded = sum(isinstance(work.images[position], np.ndarray) for work, position in self._files)
        if not self._prices.are_low(len(self._files), len(self._files) - decoded):
            return []
        files = list(self._files)
        self._files.clear()
        self._sessions -= 1
        return files

    def _work_off(self, files: Sequence[File]) -> None:
        """Decode and infer files here, on their event loop, but for those that take a thread after all."""
        decoded: list[Decoded] = []
        ended: list[Ended] = []
        for work, position in files:
            entry = self._read(work, position, self._small_limits)
            if isinstance(entry, Decoded):
                decoded.append(entry)
            elif isinstance(entry[2], KindredError):
                # Perhaps it is only over the limits that hold here.
                with self._lock:
                    self._files.append((work, position))
            else:
                ended.append(entry)
        ended += self._infer(decoded)
        self._leave(self._end(ended))

    def _wake(self, count: int) -> None:
        """Wake so many threads, if so many are idle. Called with the lock held."""
        count = min(count, self._idle)
        self._idle -= count
        for _ in range(count):
            self._tokens.put(None)

    def _loop(self) -> None:
        while (task := self._next()) is not None:
            if isinstance(task, list):
                self._answer(self._end(self._infer(task)))
            else:
                entry = self._read(*task, self._decode_limits)
                if isinstance(entry, Decoded):
                    with self._lock:
                        # This thread looks for what to do next right after, so nobody has to be woken for these.
                        self._pixels.append(entry)
                else:
                    self._answer(self._end([entry]))
                del entry
            # Hold no image of the last request while waiting for the next one.
            del task

    def _next(self) -> "File | list[Decoded] | None":
        """Return what to do next: a file to decode or a batch to infer; None when the pipeline is closed."""
        while True:
            with self._lock:
                ready = len(self._pixels)
                if ready and self._sessions and (ready >= self._enough(ready) or not self._files):
                    self._sessions -= 1
                    self._wake(len(self._files))
                    return [self._pixels.popleft() for _ in range(min(ready, self._max_batch))]
                if self._files and ready < 2 * self._max_batch:
                    return self._files.popleft()
                if self._closing and not ready and not self._files:
                    return None
                self._idle += 1
            self._tokens.get()

    def _enough(self, ready: int) -> int:
        """Return how many decoded images make a batch: a session's share of all that wait.

        A longer queue wants the rate of large batches. In a short one, whoever was decoded first would only wait for
        the others.
        """
        share = (ready + len(self._files)) // self._all_sessions
        return min(max(share, 1), self._max_batch)

    def _read(self, work: Work, position: int, limits: DecodeLimits) -> Decoded | Ended:
        """Decode a file."""
        if work.is_dead():
            return work, position, None
        image, content_hash, start = work.images[position], b"", time.monotonic()
        try:
            if not isinstance(image, np.ndarray):
                pixels = self._runner.load_pixels(image, limits)
                content_hash = hashlib.sha256(image).digest() if work.hashes else b""
            else:
                pixels = image
        except KindredError as error:
            return work, position, _bare(error)
        except Exception as error:
            work.failure = error
            return work, position, None
        end = time.monotonic()
        if pixels is not image:
            self._prices.decoding.note(end - start)
        if self._metrics is not None:
            self._metrics.stage("queue", start - work.began)
            self._metrics.stage("decode", end - start)
        return Decoded(work, position, pixels, content_hash, end)

    def _infer(self, batch: list[Decoded]) -> list[Ended]:
        """Infer a batch, and let the next one begin."""
        wanted: list[Decoded] = []
        ended: list[Ended] = []
        for entry in batch:
            if entry[0].is_dead():
                ended.append((entry[0], entry[1], None))
            else:
                wanted.append(entry)
        if wanted:
            ended += self._encode(wanted)
        with self._lock:
            self._sessions += 1
            if self._closing:
                self._wake(len(self._threads))
            elif self._pixels or self._files:
                self._wake(1)
        return ended

    def _end(self, ended: Sequence[Ended]) -> list[Work]:
        """Set what became of images and return the requests that are complete."""
        complete: list[Work] = []
        with self._lock:
            for work, position, outcome in ended:
                work.outcomes[position] = outcome
                work.left -= 1
                if not work.left:
                    complete.append(work)
        return complete

    def _answer(self, complete: Sequence[Work]) -> None:
        """Wake the callers of complete requests, all of them at once."""
        for loop in {work.loop for work in complete}:
            # A loop that is closed already has nobody left to wake.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._leave, [work for work in complete if work.loop is loop])

    def _encode(self, batch: list[Decoded]) -> list[Ended]:
        start = time.monotonic()
        try:
            # `stack` takes longer than some models do.
            outputs = self._runner.run(
                batch[0].pixels[None] if len(batch) == 1 else np.stack([each.pixels for each in batch])
            )
        except KindredError as error:
            # Find out whose image the model cannot take: the others in the batch are strangers to it.
            if len(batch) == 1:
                return [(batch[0][0], batch[0][1], _bare(error))]
            return [ended for entry in batch for ended in self._encode([entry])]
        except Exception as error:
            for entry in batch:
                entry[0].failure = error
            return [(work, position, None) for work, position, _, _, _ in batch]
        seconds = max(time.monotonic() - start, 1e-6)
        self._prices.inference.note(seconds, len(batch))
        self._note(batch, start, seconds)
        return [
            (work, position, Embedded(vector, None if outputs.logits is None else outputs.logits[row], content_hash))
            for row, ((work, position, _, content_hash, _), vector) in enumerate(
                zip(batch, outputs.embeddings, strict=True)
            )
        ]

    def _note(self, batch: list[Decoded], start: float, seconds: float) -> None:
        if self._metrics is None:
            return
        for _, _, _, _, decoded in batch:
            self._metrics.stage("batch", start - decoded)
        self._metrics.stage("inference", seconds)
        self._metrics.batch("inference", len(batch))
