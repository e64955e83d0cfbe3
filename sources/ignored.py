"""Decide by its name whether a file is an image, and count the files that are not, by kind and reason."""

import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from imagekin.counting import counted
from imagekin.encoder.decoding.formats import IMAGE_SUFFIXES, MISSING_EXTRAS
from imagekin.types import JSON
from imagekin.version import install_command

HIDDEN = "hidden"
SYSTEM = "in a folder of a system, such as thumbnails or a recycle bin"
NO_IMAGE = "no image by its name"
NO_READER = "an archive of a kind that is not read: unpack it"
NESTED = "an archive in an archive: unpack the outer one"
UNPACKED = "an archive that is unpacked beside it"
NO_IMAGES_IN_IT = "a table of no images"
MISSING_IMAGES = "a table of images of which most are not there"
SUBMISSION = "a table of predictions to hand in"
TABLE_IN_TAR = "a table or list in a tar archive: unpack the archive, and its labels and splits are used"
MASK = "in a folder of masks, not of photos"
SEVERAL_TABLES = "one of several tables or lists of the same images: name the one to read"

# Folders in which systems keep what nobody took a photo of, in lower case, and who makes them.
SYSTEM_FOLDERS = frozenset(
    [
        *("@eadir", "#recycle", "#snapshot", "@tmp", "@sharesnap"),  # Synology DSM: thumbnails, recycle bin, snapshots
        *("@recycle", "@recently-snapshot", "@recycle_bin"),  # QNAP QTS (its thumbnails, .@__thumb, are hidden)
        *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000"),  # Windows
        *("__macosx", "network trash folder", "temporary items"),  # macOS: in zip archives, and on file servers
        *("lost+found", "~snapshot"),  # ext4; NetApp by CIFS
        *("thmbnl", "thumbnails", "thumbs", "thumbnail"),  # cameras of Sony, and programs that show photos
    ]
)
# Folders of masks and outlines that data sets keep beside their photos, in lower case: PASCAL VOC, Oxford pets, MVTec.
MASK_FOLDERS = frozenset(("segmentationclass", "segmentationobject", "trimaps", "ground_truth", "groundtruth"))
# Folders that are libraries of programs: the thumbnails and previews that Lightroom keeps beside a catalogue.
_SYSTEM_ENDINGS = (".lrdata",)
_OTHER_FOLDERS = SYSTEM_FOLDERS | MASK_FOLDERS
_ARCHIVES = frozenset((".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst"))
_OTHER_ARCHIVES = frozenset((".7z", ".rar", ".r00", ".z01", ".cab", ".iso", ".dmg", ".lz4", ".lzma", ".lz"))


class Kind(NamedTuple):
    """A kind of ignored file: the suffix of its name in lower case (empty for none), and the reason."""

    suffix: str
    reason: str


class Ignored:
    """Numbers of ignored files.

    Args:
        counts: kinds and their numbers.
    """

    def __init__(self, counts: Iterable[tuple[Kind, int]] = ()) -> None:
        self._counts: Counter[Kind] = Counter(dict(counts))

    def add(self, kind: Kind, count: int = 1) -> None:
        """Count files of a kind."""
        self._counts[kind] += count

    def update(self, others: "Ignored") -> None:
        """Add other numbers."""
        self._counts.update(others._counts)

    def __iter__(self) -> Iterator[tuple[Kind, int]]:
        """Yield kinds and their numbers, the most frequent kind first."""
        return iter(self._counts.most_common())

    @property
    def total(self) -> int:
        """Number of all files."""
        return self._counts.total()

    @property
    def unread_images(self) -> int:
        """Number of images that cannot be read because a package is missing."""
        return sum(count for kind, count in self if kind.suffix in MISSING_EXTRAS and kind == _kind_of(kind.suffix))

    def to_json(self) -> list[dict[str, JSON]]:
        """Return the numbers as JSON."""
        return [{"suffix": kind.suffix, "reason": kind.reason, "count": count} for kind, count in self]

    def lines(self) -> Iterator[str]:
        """Yield a sentence about each kind."""
        for kind, count in self:
            yield f"passed over {counted(count, f'{kind.suffix} file'.lstrip())}: {kind.reason}"


def ignored_kind(path: str) -> Kind | None:
    """Return the kind of file that a path, relative to the source's root, is ignored as; None for an image."""
    suffix = suffix_of(path)
    if is_hidden(path):
        return Kind(suffix, HIDDEN)
    if in_system_folder(path):
        return Kind(suffix, MASK if _in_folder_of(path, MASK_FOLDERS) else SYSTEM)
    return None if suffix in IMAGE_SUFFIXES else _kind_of(suffix)


def is_image_name(path: str) -> bool:
    """Return whether a path, relative to the source's root, is that of an image."""
    return suffix_of(path) in IMAGE_SUFFIXES and not is_hidden(path) and not in_system_folder(path)


def suffix_of(path: str) -> str:
    """Return the suffix of a path's last part in lower case, with its dot."""
    return posixpath.splitext(path)[1].lower()


def is_hidden(path: str) -> bool:
    """Return whether a relative path has a hidden part."""
    if "/." not in path and not path.startswith("."):
        return False
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def in_system_folder(path: str) -> bool:
    """Return whether a relative path leads through a folder of what nobody took a photo of."""
    return _is_system_folder(path.rpartition("/")[0])


@lru_cache(maxsize=1024)  # images lie beside others
def _is_system_folder(folder: str) -> bool:
    return bool(folder) and any(
        part in _OTHER_FOLDERS or part.endswith(_SYSTEM_ENDINGS) for part in folder.lower().split("/")
    )


def _in_folder_of(path: str, names: Collection[str]) -> bool:
    return any(part in names for part in path.lower().split("/")[:-1])


def _kind_of(suffix: str) -> Kind:
    if extra := MISSING_EXTRAS.get(suffix):
        return Kind(suffix, f"reading them needs a package more: {install_command(extra)}")
    if suffix in _ARCHIVES:  # in a folder they are read
        return Kind(suffix, NESTED)
    return Kind(suffix, NO_READER if suffix in _OTHER_ARCHIVES else NO_IMAGE)
