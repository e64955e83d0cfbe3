"""Embed image files in batches, with reading, decoding and the model at work at the same time.

    read (one thread) ─▶ decode (many threads) ─▶ embed (a thread for each run of the model)

Pieces are read and decoded ahead, so that there is always one to embed, but only so far that memory does not depend on
how many files there are. Everything comes out in the order in which it came in.

Each piece is one run of the model, as many at one time as it allows. Runs of one thread each never wait for one another
in the middle: CIFAR-10's images took 660 µs of processor time in the tiny encoder on one thread and 780 on two.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.errors import ImageError, ImagekinError
from imagekin.index.ingest.prefetch import Prefetch
from imagekin.types import Vector

# Files of this size together are embedded and stored before more are, so that large photos cannot fill the memory.
MAX_BATCH_BYTES = 32 * 2**20
# Files that one task decodes, one after the other: handing over small ones one by one costs more than decoding them.
_DECODED_AT_ONCE = 16
_DECODED_BYTES_AT_ONCE = 128 * 1024
_NO_MODEL = "it is an image, and no model was given to embed it"
# Whoever embedded elsewhere left out what the collection held then, and sent no bytes.
_VANISHED = "it was deleted from the collection during this run; run the same again"

Decoded: TypeAlias = list[NDArray[np.uint8] | ImageError]
Data: TypeAlias = bytes | Vector | ImagekinError
T = TypeVar("T")
_Piece: TypeAlias = list[tuple[T, Vector | ImagekinError]]


class EmbeddingModel(Protocol):
    """Turn an image file into an embedding, as `imagekin.encoder.runtime.session.Encoder` does; called from threads.

    Attributes:
        sessions: how many batches it embeds at one time.
    """

    @property
    def sessions(self) -> int:
        """Number of inferences that run at the same time."""
        ...

    def load_pixels(self, data: bytes, limits: DecodeLimits | None = None) -> NDArray[np.uint8]:
        """Return an image file's pixels, uint8 [H, W, 3]; raises ImageError."""
        ...

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings of uint8 [N, H, W, 3], float32 [N, D]."""
        ...


@dataclass(frozen=True, slots=True)
class EmbedSettings:
    """Settings of the embedding stage: threads, batches and memory.

    Attributes:
        batch_size: images that are being embedded, or are embedded and have not been dealt with, at most.
        workers: threads that decode.
        limits: what is refused as an image.
    """

    batch_size: int
    workers: int
    limits: DecodeLimits


def embedded(
    model: EmbeddingModel | None, files: Iterable[tuple[T, Data]], pace: EmbedSettings
) -> Generator[list[tuple[T, Vector | ImagekinError]], None, None]:
    """Yield what came in, with an embedding, or the reason why there is none, in place of each file.

    Each list holds what is embedded by then. Whoever has asked for the next one has dealt with it.

    Args:
        model: embeds the images; None when there are none.
        files: whatever names a file, and its bytes; vectors and errors pass through as they are. Iterated, and closed
            if it is a generator, by a thread of its own.
        pace: how much is done at once.
    """
    sessions = 1 if model is None else model.sessions
    pieces = 2 * sessions  # of a batch: while one half is stored, the other is embedded
    decoders = ThreadPoolExecutor(pace.workers, thread_name_prefix="decode")
    runs = ThreadPoolExecutor(sessions, thread_name_prefix="embed")
    most = math.ceil(pace.batch_size / pieces)
    loading = Prefetch(_load(model, files, decoders, pace.limits, most, 2 * MAX_BATCH_BYTES // pieces), pieces, "read")
    running: deque[Future[_Piece[T]]] = deque()
    room = pace.batch_size // most
    try:
        while True:
            while room and (piece := loading.take(wait=not running)) is not None:
                running.append(runs.submit(_embed, model, piece))
                room -= 1
            if not running:
                return
            done = [running.popleft().result()]
            while running and running[0].done():
                done.append(running.popleft().result())
            yield [entry for piece in done for entry in piece]
            room += len(done)
    finally:
        loading.abandon()
        loading.join()
        decoders.shutdown(cancel_futures=True)
        runs.shutdown(cancel_futures=True)


class _Loading(Generic[T]):
    """A piece on its way to being embedded; without the files' bytes, which are not needed once decoded."""

    def __init__(self) -> None:
        self.entries: list[tuple[T, Vector | ImagekinError | None]] = []
        self.size = 0
        self.tasks: list[Future[Decoded]] = []
        self._files: list[bytes] = []
        self._files_size = 0

    def add(self, name: T, data: Data) -> None:
        """Take a file; it waits for others that are decoded with it."""
        if not isinstance(data, bytes):
            self.size += data.nbytes if isinstance(data, np.ndarray) else 0
            self.entries.append((name, data))
            return
        self.size += len(data)
        self._files.append(data)
        self._files_size += len(data)
        self.entries.append((name, None))

    def decode(self, decode: Callable[[list[bytes]], Future[Decoded]], *, last: bool) -> None:
        """Hand the files over to be decoded when there are enough of them."""
        enough = len(self._files) >= _DECODED_AT_ONCE or self._files_size >= _DECODED_BYTES_AT_ONCE
        if self._files and (enough or last):
            self.tasks.append(decode(self._files))
            self._files, self._files_size = [], 0


def _load(
    model: EmbeddingModel | None,
    files: Iterable[tuple[T, Data]],
    decoders: ThreadPoolExecutor,
    limits: DecodeLimits,
    most: int,
    most_bytes: int,
) -> Generator[_Loading[T], None, None]:
    """Yield pieces of at most so many files, and of about so many bytes, being decoded already."""

    def submit(some: list[bytes]) -> Future[Decoded]:
        return decoders.submit(_decode, model, some, limits)

    piece: _Loading[T] = _Loading()
    for name, data in files:
        piece.add(name, data)
        full = len(piece.entries) == most or piece.size >= most_bytes
        piece.decode(submit, last=full)
        if full:
            yield piece
            piece = _Loading()
    if piece.entries:
        piece.decode(submit, last=True)
        yield piece


def _decode(model: EmbeddingModel | None, files: list[bytes], limits: DecodeLimits) -> Decoded:
    decoded: Decoded = []
    for data in files:
        try:
            if model is None:
                raise ImageError(_NO_MODEL if data else _VANISHED)
            decoded.append(model.load_pixels(data, limits))
        except ImageError as error:
            decoded.append(error)
    return decoded


def _embed(model: EmbeddingModel | None, piece: _Loading[T]) -> _Piece[T]:
    decoded = [one for task in piece.tasks for one in task.result()]
    pixels = [image for image in decoded if not isinstance(image, ImageError)]
    vectors = iter(model.embed_pixels(np.stack(pixels)) if pixels and model is not None else ())
    images = iter(decoded)
    done: _Piece[T] = []
    for name, data in piece.entries:
        if data is None:
            image = next(images)
            data = image if isinstance(image, ImageError) else next(vectors)
        done.append((name, data))
    return done
