"""The names by which data sets call their splits, alone or inside a longer name.

A name is cut into words at what is no letter and at capitals: `seg_train`, `Training Set` and `TrainingSet` name the
training split. Words that only say that there are images (`images`, `set`, years and numbers) count for nothing; what
else remains is compared among the folders that lie side by side, so that the class `steam train` beside `bus` is a
class, while `cars_train` beside `cars_test` are splits.

The names were collected from torchvision's ImageFolder, Keras, fast.ai, Roboflow, the Hugging Face Hub and Kaggle; the
page "Your images" of the documentation lists the sets.
"""

import re
from collections.abc import Collection
from typing import Literal, NamedTuple, TypeAlias, get_args

Split: TypeAlias = Literal["train", "validation", "test", "unlabelled"]
SPLITS: tuple[Split, ...] = get_args(Split)

_WORDS: dict[str, Split] = {
    **dict.fromkeys(
        ("train", "training", "trainset", "trainingset", "trainval", "trn", "labeled", "labelled"), "train"
    ),
    **dict.fromkeys(("val", "valid", "validation", "valset", "validationset", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "testset", "testingset", "tst", "holdout", "eval", "evaluation"), "test"),
    **dict.fromkeys(("query", "gallery", "probe"), "test"),  # of people and products that are to be found again
    **dict.fromkeys(("unlabeled", "unlabelled", "unsup", "pred", "prediction", "predictions"), "unlabelled"),
}
# Words that say nothing of what is in a folder.
_FILLERS = frozenset(
    [
        *("set", "sets", "split", "splits", "data", "dataset", "datasets", "folder", "folders", "dir", "files", "file"),
        *("image", "images", "img", "imgs", "photo", "photos", "pic", "pics", "picture", "pictures"),
        *("jpg", "jpeg", "png", "of", "the", "final", "list", "lists"),
    ]
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


class NamedSplit(NamedTuple):
    """The split that a name stands for, and the further words in the name."""

    split: Split
    rest: tuple[str, ...]


def split_of(name: str) -> NamedSplit | None:
    """Return the split that a name of a folder or file stands for; None when it stands for none, or for two."""
    words = [word.lower() for word in _WORD.findall(name)]
    if (joined := "".join(words)) in _WORDS:  # such as `hold-out`
        words = [joined]
    found = {_WORDS[word] for word in words if word in _WORDS}
    if found == {"train", "validation"}:  # both together are what is trained on in the end
        found = {"train"}
    if len(found) != 1:
        return None
    return NamedSplit(found.pop(), tuple(word for word in words if word not in _WORDS and word not in _FILLERS))


def split_named(cell: object) -> Split | None:
    """Return the split that a cell of a table names; None for none."""
    named = split_of(cell) if isinstance(cell, str) else None
    return named.split if named is not None and not named.rest else None


def splits_among(names: Collection[str]) -> dict[str, Split]:
    """Return those of the names side by side in a folder that are splits; empty when the names are classes.

    They are splits when two of them are different splits with the same further words, or when the only one is a split
    without further words.
    """
    found = {name: named for name in names if (named := split_of(name)) is not None}
    together: dict[tuple[str, ...], set[Split]] = {}
    for named in found.values():
        together.setdefault(named.rest, set()).add(named.split)
    if len(together.get((), ())) >= 2 or (len(names) == 1 and () in together):
        return {name: named.split for name, named in found.items()}
    several = {rest for rest, splits in together.items() if len(splits) >= 2}
    return {name: named.split for name, named in found.items() if named.rest in several or (several and not named.rest)}


def says_nothing(name: str) -> bool:
    """Return whether a name has only words that say that there are images, such as `data_256`."""
    words = [word.lower() for word in _WORD.findall(name)]
    return bool(words) and _FILLERS.issuperset(words)
