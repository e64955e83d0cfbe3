"""Decode and infer, the two stages of a pipeline, and measure how long each takes."""

import hashlib
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.encoder.decoding.thumbnail import load_with_thumbnail
from imagekin.encoder.metadata import Metadata
from imagekin.encoder.runtime.session import Outputs
from imagekin.errors import ImagekinError
from imagekin.serving.embedding.image_jobs import DecodedImage, EmbeddedImage, Ended, Work
from imagekin.serving.observability.metrics import Metrics
from imagekin.serving.settings import Limits


class Runner(Protocol):
    """Part of `imagekin.encoder.runtime.session.Encoder` that the pipeline uses."""

    metadata: Metadata

    def load_pixels(self, data: bytes | memoryview, limits: DecodeLimits) -> NDArray[np.uint8]:
        """Return an image file's pixels, uint8 [H, W, 3]."""

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return the outputs for pixels, uint8 [N, H, W, 3]."""


def _without_traceback(error: ImagekinError) -> ImagekinError:
    """Strip the traceback from an error.

    Its frames refer to the request, which is about to refer to the error: the cycle would keep the images in memory
    until the garbage collector runs.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class Stages:
    """Decode and infer with one model. Thread-safe.

    Args:
        runner: the model.
        limits: ceilings.
        metrics: records the stages; None records nothing.
    """

    def __init__(self, runner: Runner, limits: Limits, metrics: Metrics | None = None) -> None:
        self._runner = runner
        self._metrics = metrics
        self._limits = DecodeLimits(max_bytes=limits.max_image_bytes, max_pixels=limits.max_pixels)

    def decode(self, work: Work, position: int) -> DecodedImage | Ended:
        """Decode an image, or end it with its error."""
        if work.is_dead():
            return work, position, None
        image, content_hash, start = work.images[position], b"", time.monotonic()
        thumbnail: bytes | None = None
        try:
            if not isinstance(image, np.ndarray):
                if work.thumbnail:
                    preprocess = self._runner.metadata.preprocess
                    pixels, thumbnail = load_with_thumbnail(bytes(image), preprocess, work.thumbnail, self._limits)
                else:
                    pixels = self._runner.load_pixels(image, self._limits)
                content_hash = hashlib.sha256(image).digest() if work.hashes else b""
            else:
                pixels = image
        except ImagekinError as error:
            return work, position, _without_traceback(error)
        except Exception as error:
            work.failure = error
            return work, position, None
        end = time.monotonic()
        if self._metrics is not None:
            self._metrics.stage("queue", start - work.began)
            self._metrics.stage("decode", end - start)
        return DecodedImage(work, position, pixels, content_hash, end, thumbnail)

    def infer(self, batch: Sequence[DecodedImage]) -> list[Ended]:
        """Infer the images of a batch, leaving out those that nobody waits for any more."""
        wanted: list[DecodedImage] = []
        ended: list[Ended] = []
        for entry in batch:
            if entry.work.is_dead():
                ended.append((entry.work, entry.position, None))
            else:
                wanted.append(entry)
        if wanted:
            ended += self._encode(wanted)
        return ended

    def _encode(self, batch: list[DecodedImage]) -> list[Ended]:
        start = time.monotonic()
        try:
            # No `stack` for a single image: it takes longer than some models do.
            outputs = self._runner.run(
                batch[0].pixels[None] if len(batch) == 1 else np.stack([each.pixels for each in batch])
            )
        except ImagekinError as error:
            # One by one, so that only the image that the model cannot take fails, and no other request's.
            if len(batch) == 1:
                return [(batch[0].work, batch[0].position, _without_traceback(error))]
            return [ended for entry in batch for ended in self._encode([entry])]
        except Exception as error:
            for entry in batch:
                entry.work.failure = error
            return [(entry.work, entry.position, None) for entry in batch]
        seconds = max(time.monotonic() - start, 1e-6)
        self._note(batch, start, seconds)
        return [
            (
                work,
                position,
                EmbeddedImage(vector, None if outputs.logits is None else outputs.logits[row], content_hash, thumbnail),
            )
            for row, ((work, position, _, content_hash, _, thumbnail), vector) in enumerate(
                zip(batch, outputs.embeddings, strict=True)
            )
        ]

    def _note(self, batch: list[DecodedImage], start: float, seconds: float) -> None:
        if self._metrics is None:
            return
        for _, _, _, _, decoded, _ in batch:
            self._metrics.stage("batch", start - decoded)
        self._metrics.stage("inference", seconds)
        self._metrics.batch("inference", len(batch))
