"""Remember which images a run is trained on, so that nobody goes on with others or claims what was not checked.

A run's folder holds `data.jsonl.gz`: one line `[key, content hash, class]` for each training image, in their order.
"""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from imagekin import files
from imagekin.training.data.images import ImageSet

DATA_FILE = "data.jsonl.gz"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity of a set of images: what they are called, hold and are labelled.

    Attributes:
        images: (key, content hash, name of its class or None) of each, in order.
    """

    images: tuple[tuple[str, str, str | None], ...]

    @classmethod
    def of(cls, images: ImageSet) -> "Identity":
        """Take the identity of a set; the content is that of the files, or of the pixels where there are none."""
        names = images.class_names
        labels = [names[label] if label >= 0 else None for label in images.labels.tolist()]
        digests = images.digests or images.pixel_digests()
        return cls(tuple(zip(images.keys, digests, labels, strict=True)))

    @classmethod
    def read(cls, run_dir: Path) -> "Identity | None":
        """Read what a run recorded; None when there is no record, or a damaged one."""
        try:
            with gzip.open(run_dir / DATA_FILE, "rt", encoding="utf-8") as lines:
                rows = [json.loads(line) for line in lines]
            images = tuple((str(key), str(digest), label) for key, digest, label in rows)
        except (OSError, EOFError, ValueError, TypeError, zlib.error):
            return None
        return cls(images) if images else None

    def write(self, run_dir: Path) -> None:
        """Write the record into a run's folder; the same images always give the same bytes."""
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as file:
            file.writelines(json.dumps(image).encode("ascii") + b"\n" for image in self.images)
        files.write_bytes(run_dir / DATA_FILE, packed.getvalue())

    @property
    def digests(self) -> frozenset[str]:
        """Content hashes of all images."""
        return frozenset(digest for _, digest, _ in self.images)

    @property
    def id(self) -> str:
        """Hash of keys, contents and labels, 16 hexadecimal digits, whatever their order."""
        digest = hashlib.blake2b(digest_size=8)
        for image in sorted(self.images, key=lambda image: image[0]):
            digest.update(json.dumps(image).encode("ascii") + b"\n")
        return digest.hexdigest()

    def differences(self, now: "Identity") -> tuple[str, ...]:
        """Name the differences of `now`: classes, then images that went, came, were renamed, changed or relabelled."""
        old, new = ({key: (digest, label) for key, digest, label in one.images} for one in (self, now))
        gone, come = [key for key in old if key not in new], [key for key in new if key not in old]
        at: dict[str, list[str]] = {}
        for key in reversed(come):
            at.setdefault(new[key][0], []).append(key)
        renamed = {key: at[old[key][0]].pop() for key in gone if at.get(old[key][0])}
        taken = set(renamed.values())
        both = [key for key in old if key in new]
        return (
            *_classes("is gone", "are gone", self._labels() - now._labels()),
            *_classes("is new", "are new", now._labels() - self._labels()),
            *_images("gone", [key for key in gone if key not in renamed]),
            *_images("new", [key for key in come if key not in taken]),
            *_images("renamed", [f"{before} to {after}" for before, after in renamed.items()]),
            *_images("changed", [key for key in both if old[key][0] != new[key][0]]),
            *_images("relabelled", _relabelled(both, old, new)),
        )

    def _labels(self) -> set[str]:
        return {label for _, _, label in self.images if label is not None}


def trained_digests(model: Path) -> Collection[str]:
    """Return the content hashes of the images that a model in its run's folder was trained on; none when unknown."""
    recorded = Identity.read(model.parent)
    return recorded.digests if recorded is not None else frozenset()


def _relabelled(
    keys: list[str], old: Mapping[str, tuple[str, str | None]], new: Mapping[str, tuple[str, str | None]]
) -> list[str]:
    return [f"{key} from {old[key][1]} to {new[key][1]}" for key in keys if old[key][1] != new[key][1]]


def _classes(one: str, many: str, names: set[str]) -> list[str]:
    if not names:
        return []
    return [f"class {_first(sorted(names))} {one}" if len(names) == 1 else f"classes {_first(sorted(names))} {many}"]


def _images(change: str, items: list[str]) -> list[str]:
    return [f"{len(items)} image{'s' * (len(items) > 1)} {change} ({_first(items)})"] if items else []


def _first(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (", …" if len(items) > _SHOWN else "")
