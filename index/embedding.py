"""Turns image files into embeddings, batch by batch: reading, decoding and the model at work at the same time.

    read (one thread) ─▶ decode (many threads) ─▶ embed (the thread that asks)

Reading and decoding go on while a batch is embedded, a few batches ahead, so that memory does not depend on how many
files there are. Everything comes out in the order in which it came in.
"""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from encoder.errors import ImageError, KindredError
from encoder.images import DecodeLimits
from index.prefetch import Prefetch
from index.types import Vector

# A batch is cut short when its files grow to this size together, so that large photos cannot fill the memory.
MAX_BATCH_BYTES = 32 * 2**20
# Files that one task decodes, one after the other: handing over small ones one by one costs more than decoding them.
_DECODED_AT_ONCE = 16
_DECODED_BYTES_AT_ONCE = 128 * 1024
# Batches read and being decoded ahead of the one that is being embedded.
_READ_AHEAD = 2
_NO_MODEL = "it is an image, and no model was given to embed it"
# Whoever embedded elsewhere left out what the collection held then, and sent no bytes.
_VANISHED = "it was deleted from the collection during this run; run the same again"

Decoded: TypeAlias = list[NDArray[np.uint8] | ImageError]
Data: TypeAlias = bytes | Vector | KindredError
T = TypeVar("T")


class Model(Protocol):
    """What turns an image file into an embedding; `encoder.session.Encoder` is one. Both methods run in threads."""

    def load_pixels(self, data: bytes, limits: DecodeLimits | None = None) -> NDArray[np.uint8]:
        """Return an image file's pixels, uint8 [H, W, 3]; raises ImageError."""
        ...

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings of uint8 [N, H, W, 3], float32 [N, D]."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is done at once.

    Attributes:
        batch_size: images that are embedded at once.
        workers: threads that decode.
        limits: what is refused as an image.
    """

    batch_size: int
    workers: int
    limits: DecodeLimits


def embedded(
    model: Model | None, files: Iterable[tuple[T, Data]], pace: Pace
) -> Generator[list[tuple[T, Vector | KindredError]], None, None]:
    """Yield batches of what came in, with an embedding, or the reason why there is none, in place of each file.

    Args:
        model: embeds the images; None when there are none.
        files: whatever names a file, and its bytes; vectors and errors pass through as they are. Iterated, and closed
            if it is a generator, by a thread of its own.
        pace: how much is done at once.
    """
    pool = ThreadPoolExecutor(pace.workers, thread_name_prefix="decode")
    loading = Prefetch(_load(model, files, pool, pace), _READ_AHEAD, "read")
    try:
        for batch in loading:
            yield _embed(model, batch)
    finally:
        loading.abandon()
        loading.join()
        pool.shutdown(cancel_futures=True)


class _Batch(Generic[T]):
    """Files on their way to being embedded; without their bytes, which are not needed once decoded."""

    def __init__(self) -> None:
        self.entries: list[tuple[T, Vector | KindredError | None]] = []
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
    model: Model | None, files: Iterable[tuple[T, Data]], pool: ThreadPoolExecutor, pace: Pace
) -> Generator[_Batch[T], None, None]:
    """Yield full batches, being decoded already."""

    def submit(some: list[bytes]) -> Future[Decoded]:
        return pool.submit(_decode, model, some, pace.limits)

    batch: _Batch[T] = _Batch()
    for name, data in files:
        batch.add(name, data)
        full = len(batch.entries) == pace.batch_size or batch.size >= MAX_BATCH_BYTES
        batch.decode(submit, last=full)
        if full:
            yield batch
            batch = _Batch()
    if batch.entries:
        batch.decode(submit, last=True)
        yield batch


def _decode(model: Model | None, files: list[bytes], limits: DecodeLimits) -> Decoded:
    decoded: Decoded = []
    for data in files:
        try:
            if model is None:
                raise ImageError(_NO_MODEL if data else _VANISHED)
            decoded.append(model.load_pixels(data, limits))
        except ImageError as error:
            decoded.append(error)
    return decoded


def _embed(model: Model | None, batch: _Batch[T]) -> list[tuple[T, Vector | KindredError]]:
    decoded = [one for task in batch.tasks for one in task.result()]
    pixels = [image for image in decoded if not isinstance(image, ImageError)]
    vectors = iter(model.embed_pixels(np.stack(pixels)) if pixels and model is not None else ())
    images = iter(decoded)
    done: list[tuple[T, Vector | KindredError]] = []
    for name, data in batch.entries:
        if data is None:
            image = next(images)
            data = image if isinstance(image, ImageError) else next(vectors)
        done.append((name, data))
    return done
