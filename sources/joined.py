"""A source made of readers: one rule names the classes of all, and each has a place of its own among the keys."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from imagekin.counting import counted
from imagekin.errors import InvalidArgumentError
from imagekin.sources.ignored import Ignored
from imagekin.sources.labels import MAX_FOLDERS, NO_LABEL, FolderLabels, LabelRule, Named
from imagekin.sources.pieces import Counted, Naming, Piece, Placed, Reader, ignored_in, joined
from imagekin.sources.records import Record, VectorInfo, printable
from imagekin.sources.splits import SPLITS, Split, split_of

# Classes that are named one by one when a plan is shown.
_SHOWN_CLASSES = 10


@dataclass(frozen=True, slots=True)
class Part:
    """A reader and its place in a source.

    Attributes:
        reader: the reader.
        key: prefix of its keys; see `Naming`.
        path: prefix of its paths for the rule of labels.
        split: the split of all its images, if its name states it.
    """

    reader: Reader
    key: str = ""
    path: str = ""
    split: Split | None = None


class Plan(NamedTuple):
    """The classes and splits of a source, as far as they can be told without reading images.

    Attributes:
        rule: the rule of labels.
        counts: number of images of each label and split.
        origins: where labels are, apart from folders: columns of tables.
        is_whole: False when only the first images were looked at.
    """

    rule: LabelRule
    counts: Counter[Named]
    origins: tuple[str, ...]
    is_whole: bool

    @property
    def classes(self) -> Counter[str]:
        """Number of images of each class."""
        found: Counter[str] = Counter()
        for named, count in self.counts.items():
            if named.label is not None:
                found[named.label] += count
        return found

    @property
    def splits(self) -> dict[Split, int]:
        """Number of images of each split, in the order of `SPLITS`."""
        found = {split: sum(count for named, count in self.counts.items() if named.split == split) for split in SPLITS}
        return {split: count for split, count in found.items() if count}

    def labelled(self, split: Split) -> bool:
        """Return whether images of a split have labels."""
        return any(named.split == split and named.label is not None for named in self.counts)

    def lines(self) -> Iterator[str]:
        """Yield sentences for the user: where labels are from, the classes, and the splits."""
        some = "" if self.is_whole else " among the first images"
        classes = self.classes
        if classes:
            shown = [f"{printable(name)} {count:,}" for name, count in classes.most_common(_SHOWN_CLASSES)]
            more = f", and {len(classes) - len(shown):,} more" if len(classes) > len(shown) else ""
            yield f"labels by {self._origin}: {counted(len(classes), 'class')}{some} ({', '.join(shown)}{more})"
        elif self.counts:
            yield (
                f"no labels by {self._origin}{some}"
                if self.rule.source != NO_LABEL
                else "no labels, as --label-from says"
            )
        if splits := self.splits:
            yield f"splits{some}: {', '.join(f'{split} {count:,}' for split, count in splits.items())}"

    @property
    def _origin(self) -> str:
        if self.rule.is_default:
            return " and ".join(self.origins or ("folder",))
        return f"--label-from {self.rule.source}"


class JoinedReaders:
    """The records of several readers, in order; see `Source`.

    Args:
        parts: the readers.
        rule: the way to label by paths.

    Raises:
        InvalidArgumentError: some hold images and some vectors, or vectors of different spaces or sizes.
    """

    def __init__(self, parts: Sequence[Part], rule: LabelRule) -> None:
        kinds = {part.reader.embedded for part in parts}
        if len({kind and kind.dim for kind in kinds}) > 1 or len({kind.space for kind in kinds if kind}) > 1:
            raise InvalidArgumentError(
                "give either images or vectors, and only vectors of one space and size: use a command for each",
                field="source",
            )
        self.embedded: VectorInfo | None = next(iter(kinds), None)
        self._parts = parts
        self._rule = rule
        self._ignored = Ignored()

    @property
    def ignored(self) -> Ignored:
        """The files that the last iteration ignored, by kind and reason."""
        return self._ignored

    @cached_property
    def plan(self) -> Plan:
        """The rule of labels, and what it makes of the images; of long streams, of the first ones."""
        plan, hints = self._planned(whole=False)
        # A split is known by another beside it, which may be further on in the stream.
        return self._planned(whole=True)[0] if hints and not plan.is_whole and not plan.splits else plan

    def settle_splits(self) -> Plan:
        """Return the plan; of all images if the first ones of a long stream are of splits, as others may follow."""
        if self.plan.splits and not self.plan.is_whole:
            self.plan = self._planned(whole=True)[0]
        return self.plan

    def _planned(self, *, whole: bool) -> tuple[Plan, bool]:
        """Return the plan, and whether a folder's name is one of a split, be it a split or not."""
        # Label by a rule without folders, folder and split of the part: what is counted before the folders are judged.
        seen: Counter[tuple[str | None, str, Split | None]] = Counter()
        told: list[tuple[Part, Counted]] = []
        # Folders of tables whose images are elsewhere: they hold none, and are no classes.
        of_tables: set[str] = set()
        is_whole = True

        def paths() -> Iterator[str]:
            nonlocal is_whole
            for part in self._parts:
                for found in part.reader.survey(whole=whole):
                    if found is None or len(seen) > MAX_FOLDERS:
                        is_whole = False
                        break
                    if isinstance(found, Counted):
                        told.append((part, found))
                        if found.folder.startswith("../"):
                            of_tables.add(part.path)
                        continue
                    named, split = found if isinstance(found, Placed) else (found, None)
                    if named.startswith("../"):
                        of_tables.add(part.path)
                    path = joined(part.path, printable(named))
                    seen[self._rule.without_folders(path), path.rpartition("/")[0], split or part.split] += 1
                    yield path

        def shape() -> Iterator[str]:
            yield from (part.path for part in self._parts if part.path not in of_tables)
            yield from (joined(part.path, f"{one.folder}/") for part, one in told if one.folder)

        folders = FolderLabels(paths(), shape())
        counts: Counter[Named] = Counter()
        for (label, folder, split), count in seen.items():
            named = folders(f"{folder}/")
            counts[Named(named.label if self._rule.is_default else label, split or named.split)] += count
        for part, (own, count, _, folder) in told:
            split = own.split or part.split or folders(joined(part.path, f"{folder}/")).split
            counts[Named(own.label if self._rule.asks_tables else None, split)] += count
        has_images = bool(seen) or any(one.images for _, one in told)
        if self._rule.column is not None and is_whole and has_images and not any(one.origin for _, one in told):
            raise InvalidArgumentError(
                f"--label-from {self._rule.source}: no table of these images has a column"
                f" {self._rule.column!r}; name one of its header, with the case that it has there",
                field="label_from",
            )
        origins = [*(["folder"] if seen else []), *(counted.origin for _, counted in told if counted.origin)]
        hints = any(split_of(name) for _, folder, _ in seen for name in folder.split("/"))
        return Plan(self._rule.over(folders), counts, tuple(dict.fromkeys(origins)), is_whole), hints

    def __iter__(self) -> Iterator[Record]:
        """Read the records, see `Source`."""
        for piece in self.pieces():
            yield from piece
            if (ignored := ignored_in(piece)) is not None:
                self._ignored.update(ignored)

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces of all readers, see `imagekin.sources.pieces`."""
        self._ignored = Ignored()
        rule = self.plan.rule
        for part in self._parts:
            naming = Naming(rule, part.key, part.path, part.split)
            yield from part.reader.pieces(naming, self._ignored)

    def count(self) -> int | None:
        """Return the number of records; None when a reader cannot tell without reading everything."""
        counts = [part.reader.count() for part in self._parts]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None
