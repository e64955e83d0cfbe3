"""Open the collections of a store: a folder of this machine, or Milvus."""

from pathlib import Path

from imagekin.index.interface import Collections
from imagekin.index.local.catalog import Catalog


def open_collections(
    place: Path | str, *, read_only: bool = False, device: str = "cpu", check_first: bool = False
) -> Collections:
    """Open the collections of a store.

    Args:
        place: a data folder, or the address of a store as for `--store`.
        read_only: create, change and drop nothing.
        device: device to search a data folder's collections on: `auto`, `cpu` or `cuda`; ignored for other stores.
        check_first: verify a data folder's derived files before a collection is used; ignored for other stores.

    Raises:
        InvalidArgumentError: the address is invalid.
        UnavailableError: the store cannot be reached.
        FailedPreconditionError: the store's client library is not installed.
    """
    if isinstance(place, Path):
        return Catalog(place, read_only=read_only, device=device, check_first=check_first)
    from imagekin.index.milvus.catalog import MilvusCatalog
    from imagekin.index.milvus.connection import parse_store

    return MilvusCatalog(parse_store(place), read_only=read_only)
