"""Derive labels from folders; training, indexing and everything else that reads folders use this rule.

The label of an image is the path of its folder, relative to the source's root: that of `fruit/apple/1.jpg` is
`fruit/apple`, so that classes whose last folders have the same name stay different. Left out are

- leading folders that contain only folders and are common to all images, as `flowers/` in `flowers/rose/1.jpg`;
- then the name of a split (`train`, `test`, `val` …), if a folder follows it.

Common folders are determined from the first 10,000 images, because a source may be endless.
"""

from collections.abc import Iterable
from itertools import islice, takewhile

SPLIT_NAMES = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
LOOK_AHEAD = 10_000


class FolderLabels:
    """The rule that a path's folder is its label.

    Args:
        shared: leading folders that are no part of a label.
    """

    def __init__(self, shared: tuple[str, ...] = ()) -> None:
        self.shared = shared

    @classmethod
    def of(cls, paths: Iterable[str]) -> "FolderLabels":
        """Return the rule for a source with these paths, of which no more are read than necessary."""
        shared: tuple[str, ...] | None = None
        for path in islice(paths, LOOK_AHEAD):
            folders = folders_of(path)
            if not folders:
                continue  # a stray image beside the class folders
            above = folders[:-1]
            shared = above if shared is None else _common(shared, above)
            if not shared:
                break
        return cls(shared or ())

    def __call__(self, path: str) -> str | None:
        """Return the label of an image; None if it is not in a folder."""
        folders = folders_of(path)
        count = len(self.shared)
        if folders[:count] == self.shared and len(folders) > count:
            folders = folders[count:]
        if len(folders) > 1 and folders[0] in SPLIT_NAMES:
            folders = folders[1:]
        return "/".join(folders) or None


def folders_of(path: str) -> tuple[str, ...]:
    """Return the names of the folders in a file's path."""
    return tuple(part for part in path.split("/")[:-1] if part not in ("", "."))


def _common(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
