"""The one rule by which folders name classes and splits, for training, indexing and everything else that reads images.

The label of an image is the path of the folder that it lies in, below the source's root: `fruit/apple/1.jpg` is a
`fruit/apple`, so that two classes never become one because their last folders have the same name. Left out are

- leading folders that hold only folders and that all images share, as `flowers/` in an archive of `flowers/rose/1.jpg`;
- splits by any of their names (see `imagekin.sources.splits`), above the classes or below them;
- folders that only say that there are images: `images/` in `train/images/1.jpg` and in `rose/images/1.jpg`.

What lies side by side decides: `train` beside `test` is a split, and beside `bus` and `car` it is a class.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from imagekin.errors import InvalidArgumentError
from imagekin.sources.splits import Split, says_nothing, split_of, splits_among

LOOK_AHEAD = 10_000
"""Images of a source that is read from front to back by which its folders are judged."""
MAX_FOLDERS = 100_000
"""Folders that are kept to judge by, so that a source of a folder for each image does not fill the memory."""
_MAX_DEPTH = 50
_MOST_KNOWN = 1_000

FOLDER, PARENT, NO_LABEL = "folder", "parent", "none"
"""Ways to label by a path, besides a regular expression."""
_COLUMN = "column:"

# Names of folders that only say that there are images in them, when they lie alone.
_WRAPPERS = frozenset(
    [
        *("images", "image", "img", "imgs", "data", "dataset", "photos", "photo", "pictures", "pics", "files"),
        *(
            "jpegimages",
            "jpg",
            "jpgs",
            "jpeg",
            "jpegs",
            "png",
            "pngs",
            "raw",
            "original",
            "originals",
            "all",
            "samples",
        ),
    ]
)


class Named(NamedTuple):
    """The label and the split of an image, None for none."""

    label: str | None
    split: Split | None


@dataclass(slots=True)
class _Folder:
    """A folder with images in it or below it.

    Attributes:
        name: its name.
        folders: the folders in it, by name.
        images: number of images right in it.
        label: the class that it belongs to; None for a folder above the classes.
        split: the split that it belongs to.
    """

    name: str = ""
    folders: dict[str, "_Folder"] = field(default_factory=dict)
    images: int = 0
    label: str | None = None
    split: Split | None = None

    @property
    def is_wrapper(self) -> bool:
        return self.name.lower() in _WRAPPERS


class FolderLabels:
    """The rule that a path's folder is its label, for a tree of folders.

    Args:
        paths: the paths of all images.
        shape: paths of further folders.
    """

    def __init__(self, paths: Iterable[str] = (), shape: Iterable[str] = ()) -> None:
        self._root = _Folder()
        self._splits_in_classes: dict[str, Split] = {}
        self._wrappers_in_classes: set[str] = set()
        self._known: dict[str, Named] = {}  # images lie beside others
        folders = 0
        for path in paths:
            folders += self._add(path)
            if folders > MAX_FOLDERS:
                break
        for path in shape:
            self._add(path)
        self._settle()

    def __call__(self, path: str) -> Named:
        """Return the label and the split of an image; what is new to the rule goes by its place among the folders."""
        above = path.rpartition("/")[0]
        named = self._known.get(above)
        if named is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            named = self._known[above] = self._named(path)
        return named

    def _named(self, path: str) -> Named:
        folder: _Folder | None = self._root
        label: str | None = None
        split: Split | None = None
        later: Split | None = None
        for name in folders_of(path):
            above, folder = folder, None if folder is None else folder.folders.get(name)
            if folder is not None:
                label, split = folder.label, folder.split
            elif label is None and above is not None and (found := _other_split(above, name)) is not None:
                later, folder = found
            elif label is None:
                label = name
            elif name in self._splits_in_classes:
                later = self._splits_in_classes[name]
            elif name not in self._wrappers_in_classes:
                label = f"{label}/{name}"
        return Named(label, later or split)

    def _add(self, path: str) -> int:
        """Add an image to the tree; return the number of new folders."""
        folder, new = self._root, 0
        for name in folders_of(path)[:_MAX_DEPTH]:
            if (inside := folder.folders.get(name)) is None:
                inside = folder.folders[name] = _Folder(name)
                new += 1
            folder = inside
        folder.images += not path.endswith("/")
        return new

    def _settle(self) -> None:
        """Decide what each folder stands for, from the root down to the classes; split folders go together."""
        branches = [self._root]
        while branches:
            branches = [_unwrapped(branch) for branch in branches]
            inside = [folder for branch in branches for folder in branch.folders.values()]
            splits = splits_among({folder.name for folder in inside})
            shared = len({folder.name for folder in inside}) == 1 and all(
                folder.folders and not folder.images for folder in inside
            )
            deeper: list[_Folder] = []
            classes: list[_Folder] = []
            for branch in branches:
                for folder in branch.folders.values():
                    folder.split = splits.get(folder.name, branch.split)
                    # Beside splits, a folder of a name like `images` holds classes as they do.
                    is_above = shared or folder.name in splits or (bool(splits) and says_nothing(folder.name))
                    (deeper if is_above else classes).append(folder)
            self._name(classes)
            branches = deeper

    def _name(self, classes: list[_Folder]) -> None:
        """Name classes, and all folders in them."""
        inside = {name for folder in classes for name in folder.folders}
        splits = splits_among(inside)
        if len(splits) == len(inside) > 1:
            self._splits_in_classes |= splits
        waiting = [(folder, folder.name, folder.split) for folder in classes]
        while waiting:
            folder, label, split = waiting.pop()
            folder.label, folder.split = label, split
            for below in folder.folders.values():
                label = f"{folder.label}/{below.name}"
                if below.is_wrapper and len(folder.folders) == 1:
                    self._wrappers_in_classes.add(below.name)
                    label = folder.label
                elif below.name in self._splits_in_classes:
                    label = folder.label
                waiting.append((below, label, self._splits_in_classes.get(below.name, folder.split)))


class LabelRule:
    """The way in which the paths of a source name classes: by folders, or as the user says.

    Args:
        source: `folder` (see `FolderLabels`), `parent` (the name of an image's folder), `none`, or a regular expression
            that is searched in the path: its group `label`, else its first group, else what it matches is the label.
            `column:NAME` is the column of that name in tables; an image that is in none has no label.

    Raises:
        InvalidArgumentError: the regular expression is none, or the name of the column is empty.
    """

    def __init__(self, source: str = FOLDER, folders: FolderLabels | None = None) -> None:
        self.source = source
        self.folders = folders or FolderLabels()
        self._pattern: re.Pattern[str] | None = None
        self.column: str | None = None
        if source.startswith(_COLUMN):
            self.column = source.removeprefix(_COLUMN).strip()
            if not self.column:
                raise InvalidArgumentError(f"--label-from {_COLUMN}NAME names no column", field="label_from")
        elif source not in (FOLDER, PARENT, NO_LABEL):
            try:
                self._pattern = re.compile(source)
            except (re.error, RecursionError, OverflowError) as error:
                raise InvalidArgumentError(
                    f"--label-from takes folder, parent, none, column:NAME or a regular expression, not {source!r}"
                    f" ({error})",
                    field="label_from",
                ) from None

    def over(self, folders: FolderLabels) -> "LabelRule":
        """Return the same rule for a source of these folders."""
        return LabelRule(self.source, folders)

    @property
    def is_default(self) -> bool:
        """True for the rule of folders that also goes by what tables say."""
        return self.source == FOLDER

    @property
    def asks_tables(self) -> bool:
        """True for a rule that takes the labels of tables."""
        return self.is_default or self.column is not None

    def __call__(self, path: str) -> Named:
        """Return the label and the split of an image."""
        named = self.folders(path)
        return named if self.is_default else Named(self.without_folders(path), named.split)

    def without_folders(self, path: str) -> str | None:
        """Return the label of an image by a rule that needs no other images; None for the rule of folders."""
        if self.source in (FOLDER, NO_LABEL) or self.column is not None:
            return None
        if self._pattern is None:
            return (folders_of(path) or ("",))[-1] or None
        found = self._pattern.search(path)
        if found is None:
            return None
        group = "label" if "label" in self._pattern.groupindex else min(1, self._pattern.groups)
        return found[group] or None


def folders_of(path: str) -> tuple[str, ...]:
    """Return the names of the folders on the way to a file."""
    return tuple(part for part in path.split("/")[:-1] if part not in ("", "."))


def _unwrapped(folder: _Folder) -> _Folder:
    """Go down as long as the only folder is one that says nothing: `images`, or one called as the folder itself."""
    while len(folder.folders) == 1:
        (inside,) = folder.folders.values()
        if not inside.is_wrapper and inside.name.lower() != folder.name.lower():
            break
        inside.split = folder.split
        folder = inside
    return folder


def _other_split(above: _Folder, name: str) -> tuple[Split, _Folder] | None:
    """Find the split of a new folder beside those of other splits, and one that it is like; None for no split."""
    named = split_of(name)
    like = next((folder for folder in above.folders.values() if folder.label is None and split_of(folder.name)), None)
    return None if named is None or like is None else (named.split, like)
