"""Find the files that the paths of a table mean, which often differ from those on disk.

Tables of public sets name images without `.jpg`, or without the folder beside the table; those that people made name
them as they were on another machine, from its root or as Windows does; Label Studio puts a number before
the names of files that were uploaded.
"""

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from imagekin.encoder.decoding.formats import IMAGE_SUFFIXES
from imagekin.sources.ignored import suffix_of
from imagekin.sources.places import is_url
from imagekin.sources.splits import split_of

# Folders beside a table in which its images are looked for.
_MAX_FOLDERS = 100
# Folders of tables only, beside which the images have folders of their own.
_TABLE_FOLDERS = frozenset(
    ("annotations", "annotation", "anno", "labels", "meta", "metadata", "lists", "imagesets", "imagesplits", "splits")
)
_TRIED_PATHS = 3
# Folders above a table in an archive, below which its images are looked for.
_MAX_LEVELS = 20
# Label Studio puts eight characters and a hyphen before the name of a file that is uploaded.
_UPLOADED = re.compile(r"^/?data/upload/(?:\d+/)?(?:[0-9a-f]{8}-)?")
_DRIVE = re.compile(r"^[A-Za-z]:(?=[\\/])")


class Beside(Protocol):
    """The files beside a table."""

    @property
    def folder(self) -> str:
        """Path of the table's folder; empty for the root of an archive."""
        ...

    def is_file(self, path: str) -> bool:
        """Return whether a path, relative to the table's folder, is that of a file."""
        ...

    def folders(self, path: str) -> Sequence[str]:
        """Return the names of the folders in a folder, sorted; of very many, some."""
        ...


class LocalFiles:
    """The files beside a table of this machine.

    Args:
        folder: the table's folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def is_file(self, path: str) -> bool:
        """Return whether a path is that of a file; see `Beside`."""
        return os.path.isfile(os.path.join(self.folder, path))

    def folders(self, path: str) -> Sequence[str]:
        """Return the names of the folders in a folder; see `Beside`."""
        try:
            with os.scandir(os.path.join(self.folder, path)) as entries:
                return sorted(entry.name for entry in islice(entries, 10 * _MAX_FOLDERS) if entry.is_dir())
        except OSError:
            return ()


class PackedFiles:
    """The files beside a table in an archive.

    Args:
        paths: paths of all members.
        folder: the table's folder; empty for the archive's root.
    """

    def __init__(self, paths: Sequence[str], folder: str) -> None:
        self.folder = folder
        self._paths = set(paths)
        # No more than two levels below the table's folder are asked for, and a hostile path may have ten thousand.
        levels = min(folder.count("/") + 1 if folder else 0, _MAX_LEVELS) + 2
        self._folders: dict[str, set[str]] = {}
        for above in {tuple(path.split("/", levels)[:-1]) for path in self._paths}:
            for level, name in enumerate(above):
                self._folders.setdefault("/".join(above[:level]), set()).add(name)

    def is_file(self, path: str) -> bool:
        """Return whether a path is that of a member; see `Beside`."""
        return self._whole(path) in self._paths

    def folders(self, path: str) -> Sequence[str]:
        """Return the names of the folders in the table's folder, beside it, or in one of these; see `Beside`."""
        return sorted(self._folders.get(self._whole(path), ()))[: 10 * _MAX_FOLDERS]

    def _whole(self, path: str) -> str:
        """Return a path below the archive's root, which is empty; one that leads out of it has `..`."""
        whole = posixpath.normpath(posixpath.join(self.folder, path))
        return "" if whole == "." else whole


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """The way from a path in a table to that of a file.

    Attributes:
        strip: beginning that is left out.
        before: folder that is put before it, with its slash.
        end: suffix that is put after it.
        suffix: suffix in place of the one that it has; None to leave it.
    """

    strip: str = ""
    before: str = ""
    end: str = ""
    suffix: str | None = None

    def __call__(self, path: str) -> str:
        """Return the path of a file, relative to the table's folder, without empty and `.` parts."""
        if is_url(path):
            return path
        path = plain_path(path)
        if path.startswith("/") and not (self.strip and path.startswith(self.strip)):
            return path
        path = path.removeprefix(self.strip)
        if self.suffix is not None:
            path = path.removesuffix(posixpath.splitext(path)[1]) + self.suffix
        whole = "/".join(part for part in f"{self.before}{path}{self.end}".split("/") if part not in ("", "."))
        return posixpath.normpath(whole) if self.before.startswith("..") else whole


def plain_path(path: str) -> str:
    """Return a path with `/` between its parts, as it was before Label Studio or Windows had it; a URL stays one."""
    if "\\" in path and "/" not in path:
        path = _DRIVE.sub("", path).replace("\\", "/")
    if not path.startswith(("/data/", "data/")) or not (parts := urlsplit(path)).path.startswith(
        ("/data/local-files", "/data/upload/", "data/upload/")
    ):
        return path
    if parts.path.endswith("/local-files/") and (given := parse_qs(parts.query).get("d")):
        return given[0]
    return _UPLOADED.sub("", path)


def find_template(paths: Sequence[str], beside: Beside, table: str) -> PathTemplate | None:
    """Find the way from a table's paths to files, by the first ones; None when they are of no files here.

    Args:
        paths: paths as the table has them.
        beside: the files beside the table.
        table: the table's name, which may be that of a split or of a folder.
    """
    for path in [path for path in paths if path][:_TRIED_PATHS]:
        if is_url(path):
            return None
        path = plain_path(path)
        for template in _templates(path, lambda: _folders_below(beside, table)):
            if beside.is_file(template(path)):
                return template
    return None


def _templates(path: str, folders: Callable[[], Sequence[str]]) -> Iterator[PathTemplate]:
    """Yield ways from a path to that of a file, from the likely to the far-fetched."""
    yield PathTemplate()
    ends = [""] if suffix_of(path) in IMAGE_SUFFIXES else ["", *sorted(IMAGE_SUFFIXES)]
    befores = ["", *(f"{folder}/" for folder in folders())]
    if not path.startswith("/"):
        yield from (PathTemplate(before=before, end=end) for before in befores for end in ends)
    parts = path.split("/")
    for count in range(1, len(parts)):
        strip = "/".join(parts[:count]) + "/"
        if strip != "/":
            yield from (PathTemplate(strip, before, end) for before in befores for end in ends)
    yield from (PathTemplate(before="../", end=end) for end in ends if not path.startswith("/"))
    if (suffix := posixpath.splitext(path)[1]) and suffix.lower() in IMAGE_SUFFIXES:
        others = {suffix.lower(), suffix.upper()} - {suffix}
        yield from (PathTemplate(before=before, suffix=other) for before in befores for other in sorted(others))


def _folders_below(beside: Beside, table: str) -> Sequence[str]:
    """Return folders in which the images of a table may lie: that of its name and split first, and none of another."""
    stem = posixpath.basename(table).partition(".")[0]
    found = [folder for folder in beside.folders("") if not folder.startswith(".")][:_MAX_FOLDERS]
    for folder in list(found):
        # Wrappers, and archives that were unpacked into a folder of their own name.
        found += [f"{folder}/{inner}" for inner in ("images", folder) if inner in beside.folders(folder)]
    if posixpath.basename(posixpath.dirname(table)).lower() in _TABLE_FOLDERS:
        around = [folder for folder in beside.folders("..") if not folder.startswith(".")][:_MAX_FOLDERS]
        found += [f"../{folder}" for folder in around]
        for folder in around:
            found += [f"../{folder}/{inner}" for inner in beside.folders(f"../{folder}")[:_MAX_FOLDERS]]
    own = split_of(stem)
    # A table that names no split is one of training images, whose numbers test images may have too.
    wanted = own.split if own else "train"
    splits = {folder: None if (named := split_of(folder)) is None else named.split for folder in found}
    if own:
        found = [folder for folder in found if splits[folder] in (None, wanted)]
    return sorted(found, key=lambda one: (not one.startswith(stem), splits[one] != wanted, splits[one] is not None))
