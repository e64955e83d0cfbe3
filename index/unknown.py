"""Answer for a collection that does not exist, with the name that was probably meant."""

import difflib
import heapq
from collections.abc import Callable, Sequence
from typing import Self

from imagekin.errors import NotFoundError

# Counting the letters that two names share takes about 20 µs; comparing their order, up to 2 ms.
_MOST_COUNTED = 1_000
_MOST_COMPARED = 20


class UnknownCollectionError(NotFoundError):
    """There is no collection of that name.

    The message names no other collection until `suggesting` says which ones the caller may know of.
    """

    _name: str = ""
    _names: Sequence[str] = ()

    @classmethod
    def of(cls, name: str, names: Sequence[str], advice: str = "check the data folder") -> Self:
        """Make the error for a name.

        Args:
            name: the name that was asked for.
            names: the collections that exist.
            advice: what to do when no name is near.
        """
        error = cls(f"there is no collection {name!r}: make it first, or {advice}", field="collection")
        error._name, error._names = name, names
        return error

    def suggesting(self, may_see: Callable[[str], bool] = lambda _: True) -> Self:
        """Return the error with the nearest name among the first thousand that the caller may see, if one is near."""
        seen = [name for name in self._names if may_see(name)][:_MOST_COUNTED]
        near = difflib.get_close_matches(self._name, _most_alike(self._name, seen), 1)
        message = f"there is no collection {self._name!r}; did you mean {near[0]!r}?" if near else str(self)
        return type(self)(message, field=self.field)


def _most_alike(name: str, names: Sequence[str]) -> list[str]:
    """Return those of `names` that share most letters with a name."""
    matcher = difflib.SequenceMatcher(b=name)

    def shared(other: str) -> float:
        matcher.set_seq1(other)
        return matcher.quick_ratio()

    return heapq.nlargest(_MOST_COMPARED, names, key=shared)
