"""From image files to embeddings: a decode pool, a batcher and ONNX Runtime, all in threads; one pipeline per model.

The event loop hands in one `Work` per request and gets one wake-up when all its images are done. In between there is
no event loop: decode threads take images in the order of arrival and pass pixels to the encoder thread, which takes
what is there, up to the best batch, and never waits for more. The hand-over between the two is bounded, so that pixels
do not pile up when inference is slower than decoding.
"""

import asyncio
import contextlib
import hashlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from encoder.errors import DeadlineExceededError, KindredError, ResourceExhaustedError
from encoder.images import DecodeLimits
from encoder.metadata import Metadata
from encoder.session import Outputs
from serving.metrics import Metrics
from serving.settings import Limits

Source = bytes | NDArray[np.uint8]


class Runner(Protocol):
    """What the pipeline needs of an `encoder.session.Encoder`."""

    metadata: Metadata

    def load_pixels(self, data: bytes, limits: DecodeLimits) -> NDArray[np.uint8]:
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
        self.abandoned = False
        self.began = time.monotonic()
        self._deadline = deadline
        self._left = len(images)
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()

    def is_dead(self) -> bool:
        """Return whether nobody waits for the answer any more, so that no more work may be spent on it."""
        return self.abandoned or self.is_late() or self.failure is not None

    def is_late(self) -> bool:
        """Return whether the deadline has passed."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def put(self, position: int, outcome: Outcome | None) -> None:
        """Set what became of one image (None: dropped). The last one wakes the event loop. From any thread."""
        self.outcomes[position] = outcome
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            # A loop that is closed already has nobody left to wake.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


# An image on its way to the encoder: its request and place there, pixels, content hash, and when it was decoded.
Decoded = tuple[Work, int, NDArray[np.uint8], bytes, float]


class Pipeline:
    """Embeds images with one model.

    Args:
        runner: the model.
        limits: ceilings.
        decode_workers: decoding threads.
        max_batch: images of one inference.
        metrics: told of the stages; None for nobody.
    """

    def __init__(
        self, runner: Runner, limits: Limits, *, decode_workers: int, max_batch: int, metrics: Metrics | None = None
    ) -> None:
        self._runner = runner
        self._limits = limits
        self._decode_limits = DecodeLimits(max_bytes=limits.max_image_bytes, max_pixels=limits.max_pixels)
        self._max_batch = max_batch
        self._metrics = metrics
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._files: queue.SimpleQueue[tuple[Work, int] | None] = queue.SimpleQueue()
        self._pixels: queue.Queue[Decoded | None] = queue.Queue(2 * max_batch)
        self._queued = 0
        self._queued_bytes = 0
        self._rate = 100.0  # images/s, a running mean; the first guess only colours the first RetryInfo
        self._room = asyncio.Event()
        self._decoders = [
            threading.Thread(target=self._decode_loop, name=f"decode-{number}", daemon=True)
            for number in range(decode_workers)
        ]
        self._encoder = threading.Thread(target=self._encode_loop, name="encode", daemon=True)
        for thread in (*self._decoders, self._encoder):
            thread.start()

    @property
    def queued(self) -> int:
        """Images waiting or in work."""
        return self._queued

    @property
    def queued_bytes(self) -> int:
        """Bytes of these images."""
        return self._queued_bytes

    @contextlib.contextmanager
    def leased(self) -> Iterator[None]:
        """Keep the pipeline from being retired for the length of a block."""
        self._leases += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._leases -= 1
            if not self._leases:
                self._unused.set()

    async def retire(self) -> None:
        """Wait until nobody leases the pipeline any more and close it. Nobody may begin to meanwhile."""
        await self._unused.wait()
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
        if not images:
            return []
        work = Work(images, None if timeout is None else time.monotonic() + timeout, hashes)
        await self._enter(work, patient)
        try:
            for position in range(len(images)):
                self._files.put((work, position))
            await asyncio.shield(work.done)
        except asyncio.CancelledError:
            work.abandoned = True
            raise
        if work.failure is not None:
            raise work.failure
        if any(outcome is None for outcome in work.outcomes):
            if self._metrics is not None:
                self._metrics.rejected("deadline")
            raise DeadlineExceededError("the deadline passed while the images were queued")
        return [outcome for outcome in work.outcomes if outcome is not None]

    def close(self) -> None:
        """Stop the threads after what is queued. Blocks."""
        for _ in self._decoders:
            self._files.put(None)
        for thread in self._decoders:
            thread.join()
        self._pixels.put(None)
        self._encoder.join()

    async def _enter(self, work: Work, patient: bool) -> None:
        """Count the work in, or refuse it; it is counted out when its last image has left, wanted or not."""
        # Bulk streams fill half of the queue at most, so that single calls find room beside them.
        share = 2 if patient else 1
        while self._queued and not self._fits(work, share):
            if not patient:
                if self._metrics is not None:
                    self._metrics.rejected("queue_full")
                raise ResourceExhaustedError(
                    "the queue is full: try again later", retry_after=min(max(self._queued / self._rate, 0.05), 30.0)
                )
            self._room.clear()
            await self._room.wait()
        self._queued += len(work.images)
        self._queued_bytes += work.size
        work.done.add_done_callback(lambda _: self._leave(work))

    def _fits(self, work: Work, share: int) -> bool:
        return (
            self._queued + len(work.images) <= self._limits.max_queue // share
            and self._queued_bytes + work.size <= self._limits.max_queue_bytes // share
        )

    def _leave(self, work: Work) -> None:
        self._queued -= len(work.images)
        self._queued_bytes -= work.size
        self._room.set()

    def _decode_loop(self) -> None:
        while (task := self._files.get()) is not None:
            work, position = task
            if work.is_dead():
                work.put(position, None)
                continue
            start = time.monotonic()
            try:
                pixels, content_hash = self._decode(work.images[position], work.hashes)
            except KindredError as error:
                work.put(position, error)
            except Exception as error:
                work.failure = error
                work.put(position, None)
            else:
                end = time.monotonic()
                if self._metrics is not None:
                    self._metrics.stage("queue", start - work.began)
                    self._metrics.stage("decode", end - start)
                self._pixels.put((work, position, pixels, content_hash, end))

    def _decode(self, image: Source, with_hash: bool) -> tuple[NDArray[np.uint8], bytes]:
        if not isinstance(image, bytes):
            return image, b""
        pixels = self._runner.load_pixels(image, self._decode_limits)
        return pixels, hashlib.sha256(image).digest() if with_hash else b""

    def _encode_loop(self) -> None:
        closing = False
        while not closing:
            entry = self._pixels.get()
            batch: list[Decoded] = []
            while True:
                if entry is None:
                    closing = True
                    break
                if entry[0].is_dead():
                    entry[0].put(entry[1], None)
                else:
                    batch.append(entry)
                if len(batch) >= self._max_batch:
                    break
                try:
                    entry = self._pixels.get_nowait()
                except queue.Empty:
                    break
            if batch:
                self._encode(batch)
            # Hold no image of the last request while waiting for the next one.
            del batch, entry

    def _encode(self, batch: list[Decoded]) -> None:
        start = time.monotonic()
        try:
            outputs = self._runner.run(np.stack([pixels for _, _, pixels, _, _ in batch]))
        except KindredError as error:
            self._encode_singly(batch, error)
            return
        except Exception as error:
            for work, position, _, _, _ in batch:
                work.failure = error
                work.put(position, None)
            return
        seconds = max(time.monotonic() - start, 1e-6)
        self._note(batch, start, seconds)
        for row, (work, position, _, content_hash, _) in enumerate(batch):
            logits = None if outputs.logits is None else outputs.logits[row]
            work.put(position, Embedded(outputs.embeddings[row], logits, content_hash))

    def _note(self, batch: list[Decoded], start: float, seconds: float) -> None:
        self._rate = 0.9 * self._rate + 0.1 * len(batch) / seconds
        if self._metrics is None:
            return
        for _, _, _, _, decoded in batch:
            self._metrics.stage("batch", start - decoded)
        self._metrics.stage("inference", seconds)
        self._metrics.batch("inference", len(batch))

    def _encode_singly(self, batch: list[Decoded], error: KindredError) -> None:
        """Find out whose image the model cannot take: the others in the batch are strangers to it."""
        if len(batch) == 1:
            batch[0][0].put(batch[0][1], error)
            return
        for entry in batch:
            self._encode([entry])
