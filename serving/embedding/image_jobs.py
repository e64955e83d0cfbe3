"""Images of a request on their way through a pipeline, and their results."""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import ImagekinError
from imagekin.serving.embedding.admission import Load
from imagekin.serving.transport.turns import Path

Source = bytes | memoryview | NDArray[np.uint8]


class EmbeddedImage(NamedTuple):
    """Result of one image.

    Attributes:
        vector: float32 [D], unit length.
        logits: float32 [C], None when the model has no linear head.
        content_hash: SHA-256 of the file, empty when it was not asked for.
        thumbnail: a small JPEG file, None when it was not asked for.
    """

    vector: NDArray[np.float32]
    logits: NDArray[np.float32] | None
    content_hash: bytes
    thumbnail: bytes | None = None


EmbedOutcome = EmbeddedImage | ImagekinError


class Work:
    """Images of one request on their way through the pipeline.

    Args:
        images: image files, or pixels uint8 [H, W, 3] of the model's own size.
        deadline: `time.monotonic()` after which nobody waits for the answer; None for never.
        hashes: fill in the content hashes.
        thumbnail: pixels of the longer side of thumbnails, 0 for none.

    Attributes:
        size: bytes of the images.
        outcomes: each image's embedding or error; None while it is on its way, or when it was dropped.
        failure: an unexpected error, which fails all of them.
        left: number of images still on their way.
        done: future of the outcomes.
        load: what it takes of the queue, once it is there.
        path: whom it is from.
    """

    __slots__ = (
        "began",
        "deadline",
        "done",
        "failure",
        "hashes",
        "images",
        "left",
        "load",
        "loop",
        "outcomes",
        "path",
        "size",
        "thumbnail",
    )

    def __init__(self, images: Sequence[Source], deadline: float | None, hashes: bool, thumbnail: int = 0) -> None:
        self.images: Sequence[Source] = images
        self.hashes = hashes
        self.thumbnail = thumbnail
        self.size = sum(len(image) if isinstance(image, bytes) else image.nbytes for image in images)
        self.outcomes: list[EmbedOutcome | None] = [None] * len(images)
        self.failure: Exception | None = None
        self.began = time.monotonic()
        self.left = len(images)
        self.deadline = deadline
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[list[EmbedOutcome]] = self.loop.create_future()
        self.load = Load()
        self.path: Path = ()

    def is_dead(self) -> bool:
        """Return whether nobody waits for the answer any more, so that no more work is spent on it."""
        return self.done.cancelled() or self.is_late() or self.failure is not None

    def is_late(self) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


# An image to decode: its request and its position there.
File = tuple[Work, int]


class DecodedImage(NamedTuple):
    """Decoded image that waits for inference."""

    work: Work
    position: int
    pixels: NDArray[np.uint8]
    content_hash: bytes
    since: float
    thumbnail: bytes | None = None


# An image that is done: its request, its position there and its outcome, None when it was dropped.
Ended = tuple[Work, int, EmbedOutcome | None]
