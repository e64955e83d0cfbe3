"""Tell what a request is about: the collections that it names, and how many members it has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

# Lists of which a request has one, which is what it asks for.
_MEMBERS = ("items", "keys", "updates", "queries", "images", "inputs")
# Requests that name a collection as their subject itself.
_BY_NAME = frozenset({"CreateCollectionRequest", "DescribeCollectionRequest", "DropCollectionRequest"})


@dataclass(slots=True)
class Subject:
    """A call's subject, over all its requests so far.

    Attributes:
        collection: the last collection that was named; empty without.
        count: number of items, keys, queries or images.
    """

    collection: str = ""
    count: int = 0

    def add(self, request: Any) -> None:
        """Add a request."""
        named = collections(request)
        if named:
            self.collection = ",".join(named)
        self.count += count(request)


def collections(request: Any) -> Sequence[str]:
    """Return the collections that a request names; empty where it names none."""
    if not isinstance(request, Message):
        return ()  # read in the plain form: images only
    fields = request.DESCRIPTOR.fields_by_name
    if "batch" in fields:
        return collections(getattr(request, "batch"))  # noqa: B009 (messages have no such attribute in general)
    if request.DESCRIPTOR.name in _BY_NAME:
        return (getattr(request, "name"),)  # noqa: B009
    if "collection" in fields:
        return (getattr(request, "collection"),)  # noqa: B009
    return tuple(getattr(request, "collections")) if "collections" in fields else ()  # noqa: B009


def count(request: Any) -> int:
    """Return how many items, keys, queries or images a request has."""
    batch = getattr(request, "batch", None)
    if batch is not None:
        return count(batch)
    return max((len(getattr(request, name)) for name in _MEMBERS if hasattr(request, name)), default=0)
