"""The one rule by which folders name classes, for training, indexing and everything else that reads folders.

The label of an image is the path of the folder that it lies in, below the source's root: `fruit/apple/1.jpg` is a
`fruit/apple`, so that two classes never become one because their last folders have the same name. Left out are

- leading folders that hold only folders and that all images share, as `flowers/` in an archive of `flowers/rose/1.jpg`;
- then the name of a split (`train`, `test`, `val` …), when a folder follows it.

What all share is concluded from the first 10,000 images, because a source is read once and may not end.
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
        """Return the rule for a source of these paths; reads no more of them than it needs."""
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
        """Return the label of an image, None when it lies in no folder."""
        folders = folders_of(path)
        count = len(self.shared)
        if folders[:count] == self.shared and len(folders) > count:
            folders = folders[count:]
        if len(folders) > 1 and folders[0] in SPLIT_NAMES:
            folders = folders[1:]
        return "/".join(folders) or None


def folders_of(path: str) -> tuple[str, ...]:
    """Return the names of the folders on the way to a file."""
    return tuple(part for part in path.split("/")[:-1] if part not in ("", "."))


def _common(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
