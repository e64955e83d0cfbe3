"""Open collections wherever they are kept: in a folder of this machine or in Milvus."""

from pathlib import Path

from imagekin.index.interface import Collections
from imagekin.index.local.catalog import Catalog


def open_collections(place: Path | str, *, read_only: bool = False, device: str = "cpu") -> Collections:
    """Return the collections of a place.

    Args:
        place: a data folder, or the address of a store as `--store` takes it.
        read_only: make, change and drop nothing.
        device: `auto`, `cpu` or `cuda`: where a data folder's collections are searched; a store minds that itself.

    Raises:
        InvalidArgumentError: the address names no store.
        UnavailableError: the store cannot be reached.
        FailedPreconditionError: what it takes to speak to the store is not installed.
    """
    if isinstance(place, Path):
        return Catalog(place, read_only=read_only, device=device)
    from imagekin.index.milvus.catalog import MilvusCatalog
    from imagekin.index.milvus.connection import parse_store

    return MilvusCatalog(parse_store(place), read_only=read_only)
