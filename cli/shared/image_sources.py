"""Read the images that a command is given: files, folders and archives, as a stream with keys and labels."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np

from imagekin.errors import ImageError, ImagekinError
from imagekin.sources.ignored import Ignored
from imagekin.sources.labels import FOLDER
from imagekin.sources.open import open_sources
from imagekin.sources.records import Record
from imagekin.types import ImageLike

Result = TypeVar("Result")
# Failures that are kept with key and reason; further ones are only counted.
_LISTED = 10_000
_NO_IMAGE = ImageError("it is a vector, and an image is needed")


class Named(NamedTuple):
    """Key and label of an image whose answer is still to come."""

    key: str
    label: str | None


@dataclass(slots=True)
class Tally:
    """Count the images of a stream, served and failed.

    Attributes:
        images: images read, good and bad.
        failed: key and reason of those that were not served, the first 10,000.
        failed_count: how many were not served.
        ignored: files that were passed over.
    """

    images: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    failed_count: int = 0
    ignored: Ignored = field(default_factory=Ignored)

    @property
    def served(self) -> int:
        """Number of images served."""
        return self.images - self.failed_count

    def fail(self, key: str, error: ImagekinError) -> None:
        """Count an image that was not served."""
        self.failed_count += 1
        if len(self.failed) < _LISTED:
            self.failed.append((key, str(error)))


def answered(
    records: Iterable[Record],
    ask: Callable[[Iterator[ImageLike | ImagekinError]], Iterator[Result | ImagekinError]],
    tally: Tally,
    advance: Callable[[int], None],
) -> Iterator[tuple[Named, Result]]:
    """Send images through `ask` and yield each one's key, label and answer, in order; failures go into the tally.

    Only the images of the messages in flight are in memory.
    """
    waiting: deque[Named] = deque()

    def images() -> Iterator[ImageLike | ImagekinError]:
        for record in records:
            waiting.append(Named(record.key, record.label))
            yield _NO_IMAGE if isinstance(record.data, np.ndarray) else record.data

    for result in ask(images()):
        named = waiting.popleft()
        tally.images += 1
        advance(1)
        if isinstance(result, ImagekinError):
            tally.fail(named.key, result)
        else:
            yield named, result


@contextmanager
def reading(
    paths: Sequence[str], description: str, tally: Tally, label_from: str = FOLDER
) -> Iterator[tuple[Iterable[Record], Callable[[int], None]]]:
    """Open sources with a progress bar for the length of a block; yield the records and the bar's `advance`.

    At the end, the tally has the files that were passed over.
    """
    from imagekin.progress import progress

    source = open_sources(paths, label_from=label_from)
    with progress(description, source.count()) as advance:
        yield source, advance
    tally.ignored.update(source.ignored)
