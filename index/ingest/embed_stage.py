"""Embed image files in batches, with reading, decoding and the model at work at the same time.

    read (one thread) ─▶ decode (many threads) ─▶ embed (one thread per inference)

Pieces of a batch are read and decoded ahead, so that there is always one to embed, up to a limit that keeps memory
independent of the number of files. Results are in the order of the files.

Each piece is one inference, and the model runs as many at the same time as it has sessions. Single-threaded inferences
in parallel need less processor time than multi-threaded ones, whose threads wait for one another: in the tiny encoder,
an image of CIFAR-10 took 660 µs on one thread and 780 µs on two.
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

# Size of the files that are read ahead at most, so that large photos cannot fill the memory.
MAX_BATCH_BYTES = 32 * 2**20
# Files that one task decodes: for small files, a task of their own costs more than decoding.
_DECODED_AT_ONCE = 16
_DECODED_BYTES_AT_ONCE = 128 * 1024
_NO_MODEL = "it is an image, and no model was given to embed it"
# Reported for empty data: a remote worker skipped the image because the collection held it, and it was deleted since.
_VANISHED = "it was deleted from the collection during this run; run the same again"

_Decoded: TypeAlias = list[tuple[NDArray[np.uint8] | ImageError, bytes | None]]
Data: TypeAlias = bytes | Vector | ImagekinError
# Decodes an image file to pixels for the model, uint8 [H, W, 3], and to a thumbnail.
LoadBoth: TypeAlias = Callable[[bytes, DecodeLimits], tuple[NDArray[np.uint8], bytes]]
T = TypeVar("T")
# What identifies a file, its embedding or error, and its thumbnail if it was asked for.
_Piece: TypeAlias = list[tuple[T, Vector | ImagekinError, bytes | None]]


class EmbeddingModel(Protocol):
    """A model that embeds image files, such as `imagekin.encoder.runtime.session.Encoder`; called from threads."""

    @property
    def sessions(self) -> int:
        """Number of inferences that run at the same time."""
        ...

    def load_pixels(self, data: bytes, limits: DecodeLimits | None = None) -> NDArray[np.uint8]:
        """Decode an image file to uint8 [H, W, 3]; raises ImageError."""
        ...

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed uint8 [N, H, W, 3] to float32 [N, D]."""
        ...


@dataclass(frozen=True, slots=True)
class EmbedSettings:
    """Settings of the embedding stage: threads, batches and memory.

    Attributes:
        batch_size: most images that are being embedded, or embedded and not stored yet.
        workers: threads that decode.
        limits: limits of image files.
        load_both: loads a file's pixels for the model together with its thumbnail; None makes no thumbnails.
    """

    batch_size: int
    workers: int
    limits: DecodeLimits
    load_both: LoadBoth | None = None


def embedded(
    model: EmbeddingModel | None, files: Iterable[tuple[T, Data]], pace: EmbedSettings
) -> Generator[_Piece[T], None, None]:
    """Yield the entries of `files` in lists, with each file replaced by its embedding or an error, and its thumbnail.

    Each list holds the results that are ready. Asking for the next list means that the last one has been stored.

    Args:
        model: embeds the images; None when there are no images.
        files: pairs of anything that identifies a file, and its bytes; vectors and errors instead of bytes are passed
            on unchanged. It is iterated, and closed if it is a generator, in a thread of its own.
        pace: threads, batches, memory, and thumbnails.
    """
    sessions = 1 if model is None else model.sessions
    pieces = 2 * sessions  # of a batch: while one half is stored, the other half is embedded
    decoders = ThreadPoolExecutor(pace.workers, thread_name_prefix="decode")
    runs = ThreadPoolExecutor(sessions, thread_name_prefix="embed")
    most = math.ceil(pace.batch_size / pieces)
    loading = Prefetch(_load(model, files, decoders, pace, most, 2 * MAX_BATCH_BYTES // pieces), pieces, "read")
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
    """A piece that is being read and decoded; it drops the files' bytes once they are decoded."""

    def __init__(self) -> None:
        self.entries: list[tuple[T, Vector | ImagekinError | None]] = []
        self.size = 0
        self.tasks: list[Future[_Decoded]] = []
        self._files: list[bytes] = []
        self._files_size = 0

    def add(self, name: T, data: Data) -> None:
        """Add a file, to be decoded together with others."""
        if not isinstance(data, bytes):
            self.size += data.nbytes if isinstance(data, np.ndarray) else 0
            self.entries.append((name, data))
            return
        self.size += len(data)
        self._files.append(data)
        self._files_size += len(data)
        self.entries.append((name, None))

    def decode(self, decode: Callable[[list[bytes]], Future[_Decoded]], *, last: bool) -> None:
        """Start to decode the files when there are enough of them, or when they are the last ones."""
        enough = len(self._files) >= _DECODED_AT_ONCE or self._files_size >= _DECODED_BYTES_AT_ONCE
        if self._files and (enough or last):
            self.tasks.append(decode(self._files))
            self._files, self._files_size = [], 0


def _load(
    model: EmbeddingModel | None,
    files: Iterable[tuple[T, Data]],
    decoders: ThreadPoolExecutor,
    pace: EmbedSettings,
    most: int,
    most_bytes: int,
) -> Generator[_Loading[T], None, None]:
    """Yield pieces of at most `most` files and about `most_bytes`, whose decoding has been started."""

    def submit(some: list[bytes]) -> Future[_Decoded]:
        return decoders.submit(_decode, model, some, pace)

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


def _decode(model: EmbeddingModel | None, files: list[bytes], pace: EmbedSettings) -> _Decoded:
    decoded: _Decoded = []
    for data in files:
        try:
            if model is None:
                raise ImageError(_NO_MODEL if data else _VANISHED)
            if pace.load_both is not None:
                decoded.append(pace.load_both(data, pace.limits))
            else:
                decoded.append((model.load_pixels(data, pace.limits), None))
        except ImageError as error:
            decoded.append((error, None))
    return decoded


def _embed(model: EmbeddingModel | None, piece: _Loading[T]) -> _Piece[T]:
    decoded = [one for task in piece.tasks for one in task.result()]
    pixels = [image for image, _ in decoded if not isinstance(image, ImageError)]
    vectors = iter(model.embed_pixels(np.stack(pixels)) if pixels and model is not None else ())
    images = iter(decoded)
    done: _Piece[T] = []
    for name, data in piece.entries:
        thumbnail = None
        if data is None:
            image, thumbnail = next(images)
            data = image if isinstance(image, ImageError) else next(vectors)
        done.append((name, data, thumbnail))
    return done
