"""Images to train on and to judge by, decoded once into one uint8 array.

The pixels are those that serving will see: every file goes through `encoder.images.load_pixels`, so training and the
service cannot disagree on orientation, colour or resizing.
"""

import itertools
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from encoder.errors import ImageError, InvalidArgumentError, NotFoundError
from encoder.images import DecodeLimits, fit, from_array, load_pixels
from encoder.metadata import Preprocess
from training.cifar import is_cifar, read_cifar
from training.progress import Advance, progress
from training.settings import Resize
from training.sources import ARCHIVE_SUFFIXES, Entry, is_archive, read_archive, read_file, read_folder

Split = Literal["train", "test", "all"]

DIGITS = "digits"
DIGITS_TEST_SHARE = 0.2
SPLIT_NAMES = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})

logger = logging.getLogger("kindred.training")


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Decoded images.

    Attributes:
        pixels: uint8 [N, H, W, 3], RGB.
        labels: int64 [N], positions in `class_names`; all −1 when the source has no class folders.
        class_names: sorted; empty when the source has no class folders.
        keys: a name for each image, unique in its source.
        name: the source's name, for people.
        preprocess: how the files became pixels.
        failed: (key, reason) of each file that is not among the images.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    keys: tuple[str, ...]
    name: str
    preprocess: Preprocess
    failed: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> "ImageSet":
        """Return the images at `rows`, int64 [M], in that order."""
        keys = tuple(self.keys[row] for row in rows)
        pixels, labels = self.pixels[rows], self.labels[rows]
        return ImageSet(pixels, labels, self.class_names, keys, self.name, self.preprocess, self.failed)


def load_images(
    spec: str,
    *,
    size: int = 0,
    split: Split = "all",
    limit: int = 0,
    resize: Resize = "crop",
    preprocess: Preprocess | None = None,
) -> ImageSet:
    """Load the images that `spec` names.

    Args:
        spec: `digits`, a folder of class folders, a .tar(.gz) of them, or torchvision's CIFAR-10 (folder or archive).
        size: side in pixels of the square images returned.
        split: which part of a source that has a fixed split (`has_split`); other sources have only `all`.
        limit: at most this many images of each class, the first in order of key; 0 is all of them.
        resize: how an image becomes a square, see `Preprocess`.
        preprocess: how files become pixels, as a model's metadata say; instead of `size` and `resize`.

    Raises:
        NotFoundError: there is nothing at `spec`.
        InvalidArgumentError: it holds no image, has no such split, or is a damaged archive.
    """
    preprocess = preprocess or Preprocess(height=size, width=size, resize=resize)
    if spec == DIGITS:
        images = _load_digits(preprocess, split)
    elif is_cifar(Path(spec)):
        images = _load_cifar(Path(spec), preprocess, split)
    elif split == "test":
        raise InvalidArgumentError(f"{spec} has no built-in test images; name some with --test", field="data")
    else:
        return _load_files(Path(spec), preprocess, limit)
    return images.take(_first_of_each(images.labels, limit)) if limit else images


def has_split(spec: str) -> bool:
    """Say whether the source comes with its own test images."""
    return spec == DIGITS or is_cifar(Path(spec))


def data_name(spec: str) -> str:
    """Return the source's name for people: its last path component without an archive's suffix."""
    name = Path(spec).resolve().name if spec not in (DIGITS,) else spec
    for suffix in ARCHIVE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _load_digits(preprocess: Preprocess, split: Split) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8×8 gray; a fixed fifth of each class is held out for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    everyone = np.arange(len(labels))
    train, test = train_test_split(everyone, test_size=DIGITS_TEST_SHARE, random_state=0, stratify=labels)
    rows = np.sort({"train": train, "test": test, "all": everyone}[split])
    gray = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.stack([fit(from_array(gray[row]), preprocess) for row in rows])
    keys = tuple(f"{labels[row]}/{row:04d}" for row in rows)
    return ImageSet(pixels, labels[rows], tuple(str(digit) for digit in range(10)), keys, DIGITS, preprocess)


def _load_cifar(path: Path, preprocess: Preprocess, split: Split) -> ImageSet:
    pixels, labels, names, keys = read_cifar(path, split)
    if pixels.shape[1:3] != (preprocess.height, preprocess.width) or preprocess.crop_fraction != 1:
        pixels = np.stack([fit(from_array(image), preprocess) for image in pixels])
    return ImageSet(pixels, labels, names, keys, "cifar10", preprocess)


def _load_files(path: Path, preprocess: Preprocess, limit: int) -> ImageSet:
    limits = DecodeLimits()
    if path.is_dir():
        paths = list(read_folder(path))
        names = [file.relative_to(path).as_posix() for file in paths]
        chosen = _first_of_each_folder(names, limit)
        jobs: Iterator[Callable[[], Entry]] = (_reader(path, paths[i], limits.max_bytes) for i in chosen)
        total: int | None = len(chosen)
    elif path.is_file() and is_archive(path):
        entries = _limited(read_archive(path, limits.max_bytes), limit)
        jobs, total = (_ready(entry) for entry in entries), None
    elif path.exists():
        raise InvalidArgumentError(f"{path} is neither a folder nor a .tar, .tar.gz or .tgz archive", field="data")
    else:
        raise NotFoundError(f"{path} does not exist; give a folder, a .tar(.gz) archive or `digits`", field="data")
    with progress(f"reading {data_name(str(path))}", total) as advance:
        decoded = list(_decode_all(jobs, preprocess, limits, advance))
    return _assemble(path, preprocess, decoded)


def _assemble(path: Path, preprocess: Preprocess, decoded: Sequence["_Decoded"]) -> ImageSet:
    """Sort what was decoded by name, give it labels, and say what failed."""
    decoded = list({item.name: item for item in decoded}.values())  # an archive's later member replaces an earlier one
    good = sorted((item for item in decoded if item.pixels is not None), key=lambda item: item.name)
    failed = tuple(sorted((item.name, item.problem) for item in decoded if item.pixels is None))
    if not good:
        reason = f"all {len(failed)} failed, the first: {failed[0][0]}: {failed[0][1]}" if failed else "it holds none"
        raise InvalidArgumentError(f"no image could be read from {path}: {reason}", field="data")
    folders = _class_folders([item.name for item in good], path)
    keep = [row for row, folder in enumerate(folders) if folder] or list(range(len(good)))
    if len(keep) < len(good):
        outside = [good[row].name for row, folder in enumerate(folders) if not folder]
        failed += tuple((name, "lies outside the class folders") for name in outside)
    if failed:
        shown = "; ".join(f"{name}: {reason}" for name, reason in failed[:3])
        logger.warning("%d of %d files left out: %s%s", len(failed), len(decoded), shown, " …" * (len(failed) > 3))
    names = tuple(sorted({folder for folder in folders if folder}))
    position = {name: index for index, name in enumerate(names)}
    labels = np.array([position.get(folders[row], -1) for row in keep], np.int64)
    pixels = np.stack([pixels for row in keep if (pixels := good[row].pixels) is not None])
    keys = tuple(good[row].name for row in keep)
    return ImageSet(pixels, labels, names, keys, data_name(str(path)), preprocess, failed)


def _class_folders(names: Sequence[str], path: Path) -> list[str]:
    """Return the class of each file: its folder, without the leading folders that all share; "" at the top.

    Nested class folders keep their whole path, since `Greek/character01` and `Latin/character01` are two classes.
    """
    parents = [PurePosixPath(name).parent.parts for name in names]
    distinct = {parent for parent in parents if parent}
    if len(distinct) == 1:
        return [parent[-1] if parent else "" for parent in parents]
    shared = _shared_parts(distinct)
    first = {parent[shared] for parent in distinct if len(parent) > shared}
    if len(first) > 1 and first <= SPLIT_NAMES:
        parts = ", ".join(sorted(first))
        raise InvalidArgumentError(
            f"{path} holds the splits {parts}; give one as DATA and another with --test", field="data"
        )
    return ["/".join(parent[shared:]) for parent in parents]


def _shared_parts(folders: set[tuple[str, ...]]) -> int:
    """Return how many leading parts all folders share."""
    columns = zip(*folders, strict=False)
    return len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))


@dataclass(frozen=True, slots=True)
class _Decoded:
    name: str
    pixels: NDArray[np.uint8] | None
    problem: str = ""


def _decode_all(
    jobs: Iterator[Callable[[], Entry]], preprocess: Preprocess, limits: DecodeLimits, advance: Advance
) -> Iterator[_Decoded]:
    """Decode in threads (Pillow lets go of the GIL), with few files in memory at a time, in the jobs' order."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[Future[_Decoded]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for job in jobs:
            waiting.append(pool.submit(_decode, job, preprocess, limits))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
                advance(1)
        while waiting:
            yield waiting.popleft().result()
            advance(1)


def _decode(job: Callable[[], Entry], preprocess: Preprocess, limits: DecodeLimits) -> _Decoded:
    entry = job()
    if entry.problem:
        return _Decoded(entry.name, None, entry.problem)
    try:
        return _Decoded(entry.name, load_pixels(entry.data, preprocess, limits))
    except ImageError as error:
        return _Decoded(entry.name, None, str(error))


def _reader(root: Path, path: Path, max_bytes: int) -> Callable[[], Entry]:
    return lambda: read_file(root, path, max_bytes)


def _ready(entry: Entry) -> Callable[[], Entry]:
    return lambda: entry


def _limited(entries: Iterator[Entry], limit: int) -> Iterator[Entry]:
    """Keep the first `limit` entries of each folder, in the archive's order; 0 keeps all."""
    seen: Counter[PurePosixPath] = Counter()
    for entry in entries:
        folder = PurePosixPath(entry.name).parent
        seen[folder] += 1
        if not limit or seen[folder] <= limit:
            yield entry


def _first_of_each_folder(names: Sequence[str], limit: int) -> list[int]:
    seen: Counter[PurePosixPath] = Counter()
    chosen = []
    for row, name in enumerate(names):
        folder = PurePosixPath(name).parent
        seen[folder] += 1
        if not limit or seen[folder] <= limit:
            chosen.append(row)
    return chosen


def _first_of_each(labels: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return the rows of the first `limit` images of each class, ascending, int64 [M]."""
    rows = [np.flatnonzero(labels == label)[:limit] for label in np.unique(labels)]
    return np.sort(np.concatenate(rows)).astype(np.int64)
