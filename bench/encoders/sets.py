"""Make the three sets on which encoders are compared, as archives of class folders, from published images.

    python bench/encoders/sets.py DATA OUT [--sets groceries,cifar10,omniglot]

DATA holds `grocery-{train,test}.tar`, `cifar10-{train,test}.tar.gz` and `omniglot.tar.gz`. Each set becomes
`OUT/NAME-train.tar` and `OUT/NAME-test.tar`. Every fourth class, by name, is left out of the training images: its test
images are the unknown ones. Groceries: every second test photo. CIFAR-10: the first 250 and 100 images of each class.
Omniglot: the characters of the first five evaluation alphabets, 14 drawers to train on and 6 to judge by.
"""

import argparse
import io
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

NAMES = ("groceries", "cifar10", "omniglot")
UNKNOWN_EVERY = 4
CIFAR_TRAIN, CIFAR_TEST = 250, 100
ALPHABETS, TRAINING_DRAWERS = 5, 14


@dataclass(frozen=True, slots=True)
class Photo:
    """A file of a set.

    Attributes:
        label: its class.
        name: of the file, unique in its class.
        content: its bytes.
    """

    label: str
    name: str
    content: bytes


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the archives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sets", type=lambda text: tuple(text.split(",")), default=NAMES)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.sets:
        train, test = _read(name, options.data)
        unknown = set(sorted({photo.label for photo in test})[UNKNOWN_EVERY - 1 :: UNKNOWN_EVERY])
        known = [photo for photo in train if photo.label not in unknown]
        _write(known, options.out / f"{name}-train.tar")
        _write(test, options.out / f"{name}-test.tar")
        print(f"{name}: {len(known)} images to train on, {len(test)} to judge by, {len(unknown)} classes unknown")


def _read(name: str, data: Path) -> tuple[list[Photo], list[Photo]]:
    """Return a set's training and test images, the unknown classes among both."""
    if name == "groceries":
        train, test = (list(_photos(data / f"grocery-{part}.tar")) for part in ("train", "test"))
        return train, test[::2]
    if name == "cifar10":
        limits = {"train": CIFAR_TRAIN, "test": CIFAR_TEST}
        train, test = (_first(_photos(data / f"cifar10-{part}.tar.gz"), limit) for part, limit in limits.items())
        return train, test
    alphabets = defaultdict(list)
    for photo in _photos(data / "omniglot.tar.gz", "images_evaluation"):
        alphabets[photo.label.partition(" ")[0]].append(photo)
    chosen = [photo for alphabet in sorted(alphabets)[:ALPHABETS] for photo in alphabets[alphabet]]
    train = _first(iter(chosen), TRAINING_DRAWERS)
    taken = {(photo.label, photo.name) for photo in train}
    return train, [photo for photo in chosen if (photo.label, photo.name) not in taken]


def _photos(path: Path, below: str = "") -> Iterator[Photo]:
    """Read the images of an archive below a folder; the folders between name the class."""
    with tarfile.open(path) as archive:
        for member in archive:
            parts = tuple(part for part in PurePosixPath(member.name).parts if part != ".")
            if member.isfile() and (not below or parts[0] == below):
                file = archive.extractfile(member)
                assert file is not None
                yield Photo(" ".join(parts[1 if below else 0 : -1]), parts[-1], file.read())


def _first(photos: Iterator[Photo], limit: int) -> list[Photo]:
    """Return the first `limit` images of each class, by name of the file."""
    by_label = defaultdict(list)
    for photo in photos:
        by_label[photo.label].append(photo)
    return [one for label in sorted(by_label) for one in sorted(by_label[label], key=lambda one: one.name)[:limit]]


def _write(photos: Sequence[Photo], path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for photo in photos:
            member = tarfile.TarInfo(f"{photo.label}/{photo.name}")
            member.size = len(photo.content)
            archive.addfile(member, io.BytesIO(photo.content))


if __name__ == "__main__":
    main()
