"""Limit a pipeline's queue, by its size and by the time that it takes."""

import asyncio
import time

from imagekin.errors import ResourceExhaustedError
from imagekin.serving.settings import Limits

# The wait is only guessed; a call let in that is then too late costs an answer that somebody else could have had.
_CAUTION = 1.3
# With so much to do in the queue a call may have to be refused.
_LONG_QUEUE_SECONDS = 0.1
_LEAST_RETRY_SECONDS = 0.05
_MOST_RETRY_SECONDS = 30.0


class Throughput:
    """Running mean of the time an image takes while the queue is not empty. For the event loop only."""

    _SPAN_SECONDS = 0.25

    def __init__(self) -> None:
        self._seconds = 0.0  # for one image; 0 as long as nothing is known
        self._since = 0.0
        self._count = 0

    def begin(self) -> None:
        """Start measuring, because the queue is no longer empty."""
        self._since, self._count = time.monotonic(), 0

    def ended(self, images: int) -> None:
        """Count images that have left."""
        self._count += images
        passed = time.monotonic() - self._since
        if passed >= self._SPAN_SECONDS:
            latest = passed / self._count
            self._seconds = 0.5 * (self._seconds + latest) if self._seconds else latest
            self._since, self._count = time.monotonic(), 0

    def seconds_for(self, images: int) -> float:
        """Return how long so many images take, in seconds; 0 while that is not known."""
        return images * self._seconds


class Admission:
    """Count the images in a pipeline's queue and limit their number. For the event loop only.

    Args:
        limits: ceilings.

    Attributes:
        queued: images waiting or being embedded.
        queued_bytes: bytes of these images.
    """

    def __init__(self, limits: Limits) -> None:
        self.queued = 0
        self.queued_bytes = 0
        self._limits = limits
        self._pace = Throughput()
        self._room = asyncio.Event()

    def refusal(self, images: int = 1, size: int = 0, timeout: float | None = None) -> ResourceExhaustedError | None:
        """Return the error for adding so many images of so many bytes now, None when they fit.

        Args:
            images: how many.
            size: their bytes.
            timeout: seconds after which the caller stops waiting; None for never.
        """
        if not self.queued:
            return None
        if not self._fits(images, size):
            wait = min(max(self._pace.seconds_for(self.queued), _LEAST_RETRY_SECONDS), _MOST_RETRY_SECONDS)
            return ResourceExhaustedError("the queue is full: try again later", retry_after=wait)
        # Whoever would be answered too late is told now, instead of pushing others behind their deadlines, too.
        wait = self._pace.seconds_for(self.queued + images)
        if timeout is not None and _CAUTION * wait > timeout:
            return ResourceExhaustedError(
                "the queue is too long for the call's deadline: try again later",
                retry_after=min(wait, _MOST_RETRY_SECONDS),
            )
        return None

    def may_refuse(self) -> bool:
        """Return whether the queue is so long that `refusal` should be called before a request is read."""
        return bool(self.queued) and (not self._fits(1, 0) or self._pace.seconds_for(self.queued) > _LONG_QUEUE_SECONDS)

    async def wait_for_room(self, images: int, size: int) -> None:
        """Wait until a batch of a bulk stream fits."""
        # They fill half of the queue at most, so that single calls find room beside them.
        while self.queued and not self._fits(images, size, share=2):
            self._room.clear()
            await self._room.wait()

    def enter(self, images: int, size: int) -> None:
        """Add a request."""
        if not self.queued:
            self._pace.begin()
        self.queued += images
        self.queued_bytes += size

    def leave(self, images: int, size: int, *, wanted: bool) -> None:
        """Remove a request; `wanted` tells whether it was finished for a caller who still waited."""
        self.queued -= images
        self.queued_bytes -= size
        if wanted:
            self._pace.ended(images)
        self._room.set()

    def _fits(self, images: int, size: int, share: int = 1) -> bool:
        return (
            self.queued + images <= self._limits.max_queue // share
            and self.queued_bytes + size <= self._limits.max_queue_bytes // share
        )
