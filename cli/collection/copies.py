"""Open a collection, wherever it is kept, for what compares all of its items with one another.

A server has no call for that: its items are fetched into a temporary folder and compared here, with the same answer.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from imagekin.cli.shared import options

if TYPE_CHECKING:
    from imagekin.client.sync_client import Client
    from imagekin.index.interface import KeptCollection
    from imagekin.index.types import VectorItem
    from imagekin.types import StoredItem

_AT_ONCE = 1_000


@contextlib.contextmanager
def whole_collection(
    place: options.CollectionsPlace, name: str, *, read_only: bool = True
) -> "Iterator[KeptCollection]":
    """Open a collection here, or a copy of a server's; a copy's changes are lost."""
    if place.here is not None:
        with place.open(read_only=read_only) as catalog, catalog.open(name) as collection:
            yield collection
        return
    with place.connect(timeout=60.0) as client, TemporaryDirectory(prefix="imagekin-") as folder:
        yield from _copy(client, name, Path(folder))


def _copy(client: "Client", name: str, folder: Path) -> "Iterator[KeptCollection]":
    """Yield a copy of a server's collection, without thumbnails, in the order of its items' last writes."""
    from imagekin.index.open import open_collections
    from imagekin.progress import progress

    info = client.collection(name)
    with open_collections(folder, read_only=False) as catalog:
        catalog.create(name, space=info.space, dim=info.dim, index_kind="flat")
        with catalog.open(name) as copy:
            items = client.scroll(name, with_vector=True)
            with progress("fetching", info.count) as advance:
                while some := list(itertools.islice(items, _AT_ONCE)):
                    copy.upsert([_item(one) for one in some])
                    advance(len(some))
            yield copy


def _item(stored: "StoredItem") -> "VectorItem":
    from imagekin.errors import InternalError
    from imagekin.index.types import VectorItem

    if stored.vector is None:
        raise InternalError(f"the server left out the vector of {stored.key!r}")
    return VectorItem(
        key=stored.key,
        vector=stored.vector,
        label=stored.label,
        payload=stored.payload,
        content_hash=stored.content_hash,
    )
