"""Decode the images of a source in threads, a few at a time, and arrange them as a set."""

import logging
import sys
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath

import numpy as np

from imagekin.encoder.decoding.decode import DecodeLimits, load_pixels
from imagekin.encoder.metadata import Preprocess
from imagekin.errors import ImageError, ImagekinError, InvalidArgumentError
from imagekin.machine import cores
from imagekin.progress import progress
from imagekin.sources.open import JoinedReaders
from imagekin.sources.records import OTHER_IMAGE, OTHER_LABEL, Record, RowError, SourceError
from imagekin.sources.splits import Split
from imagekin.training.data.pixel_cache import Arrangement, DecodedFile, digest_of

logger = logging.getLogger("imagekin.training")

_GROUP_IMAGES = 32
_GROUP_BYTES = 2**16
"""A thread is handed as many files at a time as these allow: handing over one costs as much as decoding a small one."""


def decode_source(
    source: JoinedReaders,
    name: str,
    preprocess: Preprocess,
    limit: int,
    skip: int = 0,
    splits: Collection[Split | None] | None = None,
) -> Iterator[DecodedFile]:
    """Decode a source's images in threads, in order, with few in memory at a time.

    Args:
        source: what to read.
        name: of the source, for the progress bar.
        preprocess: how a file becomes pixels.
        limit: at most so many of each class; 0 is all.
        skip: number of images at the start that are read but not decoded.
        splits: the splits whose images are wanted; None for all images.

    Raises:
        InvalidArgumentError: the source is damaged, so that the rest of it is unknown, or it holds vectors.
    """
    workers = cores()
    waiting: deque[Future[list[DecodedFile]]] = deque()
    total = source.count() if sys.stderr.isatty() and not limit else None
    with ThreadPoolExecutor(workers) as pool, progress(f"reading {name}", total) as advance:
        records = iter(_wanted(source, limit, splits))
        advance(sum(1 for _ in islice(records, skip)))
        for group in _groups(records):
            waiting.append(pool.submit(_decode_all, group, preprocess))
            if len(waiting) >= 4 * workers:
                yield from (done := waiting.popleft().result())
                advance(len(done))
        while waiting:
            yield from (done := waiting.popleft().result())
            advance(len(done))


def arrange(rows: Sequence[DecodedFile], path: str) -> Arrangement:
    """Sort decoded files by name, number their labels and list the failures.

    Raises:
        InvalidArgumentError: there is no image, or none can be read.
    """
    first: dict[str, DecodedFile] = {}
    failed: list[tuple[str, str]] = []
    good: list[tuple[str, int]] = []
    for place, row in enumerate(rows):
        before = first.setdefault(row.name, row)
        if row.problem:
            failed.append((row.name, row.problem))
        elif before is row or before.problem:
            first[row.name] = row
            good.append((row.name, place))
        elif before.digest != row.digest:
            failed.append((row.name, OTHER_IMAGE))
        elif before.label != row.label:
            failed.append((row.name, OTHER_LABEL))
    good.sort()
    if not good:
        failed.sort()
        reason = f"all {len(failed)} failed, the first: {failed[0][0]}: {failed[0][1]}" if failed else "it holds none"
        raise InvalidArgumentError(f"no image could be read from {path}: {reason}", field="data")
    classes = [rows[place].label for _, place in good]
    names = tuple(sorted({name for name in classes if name}))
    position: dict[str | None, int] = {name: index for index, name in enumerate(names)}
    if names:
        failed += [(name, "has no label") for (name, _), label in zip(good, classes, strict=True) if not label]
    kept = [(*item, label) for item, label in zip(good, classes, strict=True) if label or not names]
    if failed:
        failed.sort()
        shown = "; ".join(f"{name}: {reason}" for name, reason in failed[:3])
        logger.warning("%d of %d files left out: %s%s", len(failed), len(rows), shown, " …" * (len(failed) > 3))
    return Arrangement(
        order=np.array([place for _, place, _ in kept], np.int64),
        keys=tuple(name for name, _, _ in kept),
        labels=tuple(position.get(label, -1) for _, _, label in kept),
        class_names=names,
        digests=tuple(rows[place].digest for _, place, _ in kept),
        failed=tuple(failed),
    )


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Group consecutive records until a group is large enough for a thread."""
    group: list[Record] = []
    size = 0
    for record in records:
        group.append(record)
        size += len(record.data) if isinstance(record.data, bytes) else 0
        if len(group) >= _GROUP_IMAGES or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _decode_all(group: Sequence[Record], preprocess: Preprocess) -> list[DecodedFile]:
    return [_decode(record, preprocess) for record in group]


def _decode(record: Record, preprocess: Preprocess) -> DecodedFile:
    if isinstance(record.data, SourceError) and not isinstance(record.data, RowError):
        raise InvalidArgumentError(f"{record.key}: {record.data}", field="data") from record.data
    if isinstance(record.data, ImagekinError):
        return DecodedFile(record.key, None, str(record.data), record.label)
    if not isinstance(record.data, bytes):
        raise InvalidArgumentError(f"{record.key} is a vector; encoders are trained on images", field="data")
    try:
        pixels = load_pixels(record.data, preprocess, DecodeLimits())
        return DecodedFile(record.key, pixels, "", record.label, digest_of(record.data))
    except ImageError as error:
        return DecodedFile(record.key, None, str(error), record.label)


def _wanted(records: Iterable[Record], limit: int, splits: Collection[Split | None] | None) -> Iterator[Record]:
    """Keep the records of some splits, of each folder and label the first `limit` (0: all) in the source's order."""
    seen: Counter[tuple[PurePosixPath, str | None]] = Counter()
    for record in records:
        # Of what cannot be read the split is not known.
        if splits is not None and record.split not in splits and not isinstance(record.data, ImagekinError):
            continue
        kind = (PurePosixPath(record.key).parent, record.label)
        seen[kind] += 1
        if not limit or seen[kind] <= limit:
            yield record
