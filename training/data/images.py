"""Load images for training and evaluation, decoded once into one uint8 array.

The pixels are those that serving will see: every file goes through `imagekin.encoder.decoding.decode.load_pixels`, so
training and the service cannot disagree on orientation, colour or resizing.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagekin.encoder.decoding.decode import fit, from_array
from imagekin.encoder.metadata import JSON, Preprocess, Resize
from imagekin.errors import InvalidArgumentError
from imagekin.sources.joined import Plan
from imagekin.sources.labels import FOLDER
from imagekin.sources.open import open_source
from imagekin.sources.splits import Split as FileSplit
from imagekin.sources.suffixes import ARCHIVE_SUFFIXES
from imagekin.training.data.arrays import Split
from imagekin.training.data.decoding import arrange, decode_source
from imagekin.training.data.pixel_cache import (
    Arrangement,
    DecodedFile,
    cache_key,
    can_be_cached,
    digest_of,
    is_cached,
    open_cached,
)
from imagekin.training.data.published import published_name, read_published
from imagekin.training.data.storage import IN_MEMORY, Storage

logger = logging.getLogger("imagekin.training")

_DIGITS = "digits"
_JUDGED_ON: tuple[FileSplit, ...] = ("test", "validation")
_DIGITS_TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Decoded images.

    Attributes:
        pixels: uint8 [N, H, W, 3], RGB; a memory-mapped file when the set is in the cache.
        labels: int64 [N], positions in `class_names`; all −1 when the source has no class folders.
        class_names: sorted; empty when the source has no class folders.
        keys: a name for each image, unique in its source.
        name: the source's display name.
        preprocess: how the files became pixels.
        failed: (key, reason) of each file that is not among the images.
        digests: hash of each image's file; empty when the images come from no files of their own.
        ignored: (suffix, reason, count) of each kind of file that was passed over.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    keys: tuple[str, ...]
    name: str
    preprocess: Preprocess
    failed: tuple[tuple[str, str], ...] = ()
    digests: tuple[str, ...] = ()
    ignored: tuple[tuple[str, str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> "ImageSet":
        """Return the images at `rows`, int64 [M], in that order."""
        keys = tuple(self.keys[row] for row in rows)
        digests = tuple(self.digests[row] for row in rows) if self.digests else ()
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows], keys=keys, digests=digests)

    def left_out_json(self) -> dict[str, JSON]:
        """Return as JSON how many files could not be read or used, and the kinds of files that were passed over."""
        kinds: list[JSON] = [{"suffix": kind, "reason": reason, "count": count} for kind, reason, count in self.ignored]
        return {"failed_count": len(self.failed), "ignored": kinds}

    def pixel_digests(self) -> tuple[str, ...]:
        """Return the hash of each image's pixels as they are here: equal for equal images prepared alike."""
        return tuple(digest_of(np.ascontiguousarray(image).data) for image in self.pixels)


def load_images(
    spec: str,
    *,
    size: int = 0,
    split: Split = "all",
    limit: int = 0,
    resize: Resize = "crop",
    preprocess: Preprocess | None = None,
    storage: Storage = IN_MEMORY,
    label_from: str = FOLDER,
) -> ImageSet:
    """Load the images that `spec` names.

    Args:
        spec: `digits`, a folder of class folders, a .tar(.gz) of them, another source that `imagekin.sources.open`
            knows, or CIFAR-10, CIFAR-100, MNIST or Fashion-MNIST as torchvision stores them.
        size: side in pixels of the square images returned.
        split: part of a source that has training and test images (`has_split`); other sources have only `all`, which
            is the training split where there is one.
        limit: at most this many images of each class, the first in order of key; 0 is all of them.
        resize: how an image becomes a square, see `Preprocess`.
        preprocess: how files become pixels, as a model's metadata say; instead of `size` and `resize`.
        storage: where the pixels of files are kept; published sets are small, and always in memory.
        label_from: how paths name labels, see `imagekin.sources.labels.LabelRule`.

    Raises:
        NotFoundError: there is nothing at `spec`.
        InvalidArgumentError: it holds no image, has no such split, or is a damaged archive.
        FailedPreconditionError: the cache cannot be written.
    """
    preprocess = preprocess or Preprocess(height=size, width=size, resize=resize)
    if spec == _DIGITS:
        images = _load_digits(preprocess, split)
    elif (published := published_name(Path(spec))) is not None:
        images = _load_published(published, Path(spec), preprocess, split)
    else:
        return _load_files(spec, preprocess, limit, storage, split, label_from)
    return images.take(_first_of_each(images.labels, limit)) if limit else images


def has_split(spec: str, label_from: str = FOLDER) -> bool:
    """Return whether the source comes with test images of its own, and labels for them."""
    if spec == _DIGITS or published_name(Path(spec)) is not None:
        return True
    plan = open_source(spec, label_from=label_from).settle_splits()
    return "train" in plan.splits and _test_split(plan) is not None


def data_name(spec: str) -> str:
    """Return the source's display name: its last path component without an archive's suffix."""
    name = Path(spec).resolve().name if spec not in (_DIGITS,) else spec
    suffix = next((one for one in sorted(ARCHIVE_SUFFIXES, key=len, reverse=True) if name.lower().endswith(one)), "")
    return name.removesuffix(name[-len(suffix) :]) if suffix else name


def _load_digits(preprocess: Preprocess, split: Split) -> ImageSet:
    """Load scikit-learn's 1,797 handwritten digits, 8×8 gray; a fixed fifth of each class is held out for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    everyone = np.arange(len(labels))
    train, test = train_test_split(everyone, test_size=_DIGITS_TEST_SHARE, random_state=0, stratify=labels)
    rows = np.sort({"train": train, "test": test, "all": everyone}[split])
    gray = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.stack([fit(from_array(gray[row]), preprocess) for row in rows])
    keys = tuple(f"{labels[row]}/{row:04d}" for row in rows)
    return ImageSet(pixels, labels[rows], tuple(str(digit) for digit in range(10)), keys, _DIGITS, preprocess)


def _load_published(name: str, path: Path, preprocess: Preprocess, split: Split) -> ImageSet:
    arrays = read_published(name, path, split)
    pixels = arrays.pixels
    if pixels.shape[1:] != (preprocess.height, preprocess.width, 3) or preprocess.crop_fraction != 1:
        pixels = np.stack([fit(from_array(image), preprocess) for image in pixels])
    return ImageSet(pixels, arrays.labels, arrays.class_names, arrays.keys, name, preprocess)


def _load_files(
    path: str, preprocess: Preprocess, limit: int, storage: Storage, split: Split, label_from: str
) -> ImageSet:
    source = open_source(path, label_from=label_from)
    name = data_name(path)
    wanted = _chosen_splits(source.settle_splits(), split, path)
    for line in source.plan.lines():
        logger.info("%s: %s", name, line)
    if wanted is not None:
        logger.info("%s: using the split %s", name, wanted[0])

    def decode(skip: int) -> Iterator[DecodedFile]:
        yield from decode_source(source, name, preprocess, limit, skip, wanted)
        for line in source.ignored.lines():
            logger.info("%s: %s", name, line)

    def finish(rows: Sequence[DecodedFile]) -> Arrangement:
        kinds = tuple((kind.suffix, kind.reason, count) for kind, count in source.ignored)
        return replace(arrange(rows, path), ignored=kinds)

    if storage.on == "cache" and not can_be_cached(Path(path)):
        raise InvalidArgumentError(f"{name} cannot be cached: only folders and archives can", field="data_on")
    if storage.on == "device" or not can_be_cached(Path(path)):
        return _in_memory(list(decode(0)), finish, name, preprocess)
    key, shape = (
        cache_key(Path(path), preprocess, limit, f"{label_from} {wanted}"),
        (preprocess.height, preprocess.width, 3),
    )
    early: deque[DecodedFile] = deque()
    rest: Iterator[DecodedFile] = iter(())
    if storage.on == "auto" and not is_cached(storage.folder, key):
        most, rest = storage.limit // math.prod(shape), decode(0)
        early.extend(islice(rest, most))
        if len(early) < most:
            return _in_memory(early, finish, name, preprocess)

    def go_on(skip: int) -> Iterator[DecodedFile]:
        """Yield what is decoded already, then decode the rest, unless the cache has it."""
        return decode(skip) if skip or not early else chain(_drain(early), rest)

    pixels, order = open_cached(storage.folder, key, shape, go_on, finish)
    return _image_set(pixels, order, name, preprocess)


def _chosen_splits(plan: Plan, split: Split, path: str) -> tuple[FileSplit | None, ...] | None:
    """Return the splits of a source whose images are wanted, None for all images.

    Raises:
        InvalidArgumentError: there are no test images.
    """
    test = _test_split(plan) if "train" in plan.splits else None
    if split == "test":
        if test is None:
            raise InvalidArgumentError(f"{path} has no test images of its own; name some with --test", field="data")
        return (test,)
    # Besides a training split there may be test images without labels, which nobody trains on.
    return ("train",) if "train" in plan.splits and len(plan.splits) > 1 else None


def _test_split(plan: Plan) -> FileSplit | None:
    """Return the split with labels that a model is judged on."""
    return next((one for one in _JUDGED_ON if plan.labelled(one)), None)


def _in_memory(
    rows: Sequence[DecodedFile],
    finish: Callable[[Sequence[DecodedFile]], Arrangement],
    name: str,
    preprocess: Preprocess,
) -> ImageSet:
    order = finish(rows)
    pixels = np.stack([image for row in order.order if (image := rows[row].pixels) is not None])
    return _image_set(pixels, order, name, preprocess)


def _drain(items: deque[DecodedFile]) -> Iterator[DecodedFile]:
    while items:
        yield items.popleft()


def _image_set(pixels: NDArray[np.uint8], order: Arrangement, name: str, preprocess: Preprocess) -> ImageSet:
    labels = np.array(order.labels, np.int64)
    return ImageSet(
        pixels, labels, order.class_names, order.keys, name, preprocess, order.failed, order.digests, order.ignored
    )


def _first_of_each(labels: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return the rows of the first `limit` images of each class, ascending, int64 [M]."""
    rows = [np.flatnonzero(labels == label)[:limit] for label in np.unique(labels)]
    return np.sort(np.concatenate(rows)).astype(np.int64)
