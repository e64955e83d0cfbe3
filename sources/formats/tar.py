"""Image files in a tar archive, plain or compressed, read from front to back in constant memory.

Members that follow one another and differ only in their suffixes belong together, as in WebDataset's shards: `7.cls`
names the class of `7.jpg`, `7.json` is its payload (a `label` in it its class), `7.txt` becomes `text` in the payload.

Nothing is ever unpacked to disk, so that an archive's names, links and devices are harmless; a damaged or malicious
archive can neither exhaust the memory nor block the run.
"""

import os
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import IO

from imagekin.errors import InvalidArgumentError
from imagekin.sources.formats.sidecars import SIDECAR_SUFFIXES, Sidecars
from imagekin.sources.formats.split_lists import is_split_list
from imagekin.sources.formats.tar_members import DAMAGE, Archive, is_compressed, key_of, opened, problem_of
from imagekin.sources.ignored import (
    NO_IMAGE,
    TABLE_IN_TAR,
    Ignored,
    Kind,
    ignored_kind,
    is_hidden,
    is_image_name,
    suffix_of,
)
from imagekin.sources.labels import LOOK_AHEAD, Named
from imagekin.sources.pieces import Counted, Naming, Piece, Surveyed, WholeArchive
from imagekin.sources.places import Place
from imagekin.sources.records import Record, SourceError, printable
from imagekin.sources.suffixes import TABLE_SUFFIXES
from imagekin.sources.values import MAX_PAYLOAD_BYTES

# Members of a group that are buffered until all of its sidecars have been read.
_MAX_GROUP = 16
_MAX_GROUP_BYTES = 32 * 2**20
# Images of a compressed archive by which its folders are judged: everything before them has to be decompressed.
_COMPRESSED_LOOK_AHEAD = 1_000
# Members that are read to estimate their total number.
_SAMPLE = 10_000


class TarReader:
    """The image files of a tar archive, in the archive's order.

    A truncated or damaged archive yields the records before the damage, and then one record with an error, whose key is
    the archive's name.

    Args:
        place: the archive, or a pipe.
        max_bytes: larger members are not read.
        repeatable: False for a pipe, which cannot be opened again, so that nothing is known of its folders in advance.
    """

    embedded = None

    def __init__(self, place: Place, max_bytes: int, *, repeatable: bool = True) -> None:
        self.place = place
        self.max_bytes = max_bytes
        self.repeatable = repeatable
        self._counted: int | None = None

    def __getstate__(self) -> dict[str, object]:
        if not self.repeatable:
            raise InvalidArgumentError(
                f"{self.place.shown} is a pipe, which other processes cannot read: write it to a file",
                field="source",
            )
        return self.__dict__

    def survey(self, *, whole: bool = False) -> Iterator[Surveyed]:
        """Yield the paths of the first images, see `Reader`."""
        if not self.repeatable:
            yield None
            return
        try:
            with closing(self.place.open()) as file:
                most = _COMPRESSED_LOOK_AHEAD if is_compressed(file) else LOOK_AHEAD
                yield from self._surveyed(file, None if whole else most)
        except DAMAGE:
            yield None

    def _surveyed(self, file: IO[bytes], most: int | None) -> Iterator[Surveyed]:
        """Yield what is known of the first images; the group in hand too when the archive is damaged."""
        seen = 0
        group = _Group("")
        try:
            with opened(file) as archive:
                for member in archive:
                    key = key_of(member)
                    is_image = not member.isdir() and is_image_name(key.lstrip("/"))
                    if member.isdir() or not (is_image or _is_sidecar(key)):
                        continue
                    stem = _stem(key)
                    if stem != group.stem or group.full:
                        yield from group.surveyed()
                        group = _Group(stem)
                    if not is_image:
                        group.sidecars.add(key, _sidecar(archive, member, key))
                        continue
                    seen += 1
                    if most is not None and seen > most:
                        yield from group.surveyed()
                        yield None
                        return
                    group.images.append((key, b""))
                yield from group.surveyed()
                self._counted = seen
        except DAMAGE:
            yield from group.surveyed()
            yield None

    def pieces(self, naming: Naming, ignored: Ignored) -> Iterator[Piece]:
        """Yield the archive as one piece, see `Reader`."""
        yield WholeArchive(self, naming)

    def count(self) -> int | None:
        """Return the number of records, estimated for large archives; None for compressed ones."""
        if not self.repeatable or self._counted is not None:
            return self._counted
        try:
            with closing(self.place.open()) as file:
                if not file.seekable() or is_compressed(file):
                    return None
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                with opened(file) as archive:
                    return _estimate(archive, size)
        except DAMAGE:
            return None

    def records(self, naming: Naming, ignored: Ignored) -> Iterator[Record]:
        """Read the records, and count the members that are ignored."""
        group = _Group("")
        last = ""

        def finished(group: "_Group") -> Iterator[Record]:
            if not group.images:
                for name in group.sidecars.names:
                    ignored.add(Kind(suffix_of(name), TABLE_IN_TAR if is_split_list(name) else NO_IMAGE))
            for key, data in group.images:
                label, split = naming.named(key)
                record = group.sidecars.record(naming.key + key, key, data, label, split)
                yield record if naming.rule.is_default else replace(record, label=label)

        try:
            with closing(self.place.open()) as file, opened(file) as archive:
                for member in archive:
                    last = printable(member.name)
                    key = key_of(member)
                    if member.isdir():
                        continue
                    kind = ignored_kind(key.lstrip("/"))
                    if kind is not None and not _is_sidecar(key):
                        is_table = kind.reason == NO_IMAGE and kind.suffix in TABLE_SUFFIXES
                        ignored.add(Kind(kind.suffix, TABLE_IN_TAR) if is_table else kind)
                        continue
                    stem = _stem(key)
                    if stem != group.stem or group.full:
                        yield from finished(group)
                        group = _Group(stem)
                    if kind is None:
                        problem = problem_of(member, key, self.max_bytes)
                        group.images.append((key, problem or archive.read(member)))
                    else:
                        group.sidecars.add(key, _sidecar(archive, member, key))
                yield from finished(group)
                group = _Group("")
        except DAMAGE as error:
            yield from finished(group)
            where = f"at or after {last}" if last else "at its beginning"
            problem = f"the archive is cut off or damaged {where} ({error})"
            yield naming.failure(self.place.name, SourceError(problem))


class _Group:
    """The images and sidecars that belong together."""

    def __init__(self, stem: str) -> None:
        self.stem = stem
        self.images: list[tuple[str, bytes | str]] = []
        self.sidecars = Sidecars()

    def surveyed(self) -> Iterator[Surveyed]:
        """Yield the paths of its images, or their label if a sidecar has it."""
        for path, _ in self.images:
            label = self.sidecars.record("-", path, b"", None, None).label if self.sidecars else None
            folder = path.rpartition("/")[0]
            yield path if label is None else Counted(Named(label, None), 1, "members .cls and .json", folder)

    @property
    def full(self) -> bool:
        """True when it has as many members, or bytes, as may be buffered."""
        return len(self.images) + len(self.sidecars) >= _MAX_GROUP or (
            len(self.images) > 1 and sum(len(data) for _, data in self.images) > _MAX_GROUP_BYTES
        )


def _is_sidecar(key: str) -> bool:
    relative = key.lstrip("/")
    return not is_hidden(relative) and relative.lower().endswith(SIDECAR_SUFFIXES)


def _stem(key: str) -> str:
    """Return a path up to the first dot of its last part, by which WebDataset groups members."""
    folder, slash, name = key.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def _sidecar(archive: Archive, member: tarfile.TarInfo, key: str) -> bytes | str:
    return problem_of(member, key, MAX_PAYLOAD_BYTES) or archive.read(member)


def _estimate(archive: Archive, size: int) -> int:
    """Count the records of a plain archive by its headers; extrapolate after the first 10,000."""
    images = 0
    for seen, member in enumerate(archive, start=1):
        images += not member.isdir() and is_image_name(key_of(member).lstrip("/"))
        if seen == _SAMPLE:
            return max(images, images * size // max(1, archive.position))
    return images
