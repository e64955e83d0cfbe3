"""Search by a retriever's query, and say in words which images were found; shared by the retrievers."""

import base64
import http.client
import json
import os
import urllib.error
import urllib.request
from typing import Any, Literal, TypeAlias

from imagekin.client.sync_client import Client
from imagekin.errors import ImageError, InvalidArgumentError, UnavailableError
from imagekin.types import Neighbour

By: TypeAlias = Literal["image", "data", "key"]
"""Kinds of queries: `image`, `data` or `key`.

An image by its path, its URL or its bytes; an image in the query itself (bytes or a `data:` URL) alone, for queries
that come from strangers or a language model; the key of an item.
"""

_FETCH_SECONDS = 30.0
_MAX_BYTES = 64 * 1024 * 1024


def nearest(
    client: Client,
    query: Any,
    by: By,
    collection: str,
    k: int,
    condition: str | None,
    min_similarity: float | None,
) -> list[Neighbour]:
    """Return an image's or an item's neighbours with their payloads; arguments as for `Client.search`."""
    images, keys = (None, [str(query)]) if by == "key" else ([_image(query, by)], None)
    return client.search(
        images,
        keys=keys,
        collection=collection,
        k=k,
        filter=condition,
        min_similarity=min_similarity,
        with_payload=True,
    )[0]


def told(neighbour: Neighbour, text: str) -> tuple[str, dict[str, Any]]:
    """Return an item's text, and its metadata: the payload, `key`, `label` and `similarity`.

    Args:
        neighbour: the item.
        text: the member of the payload that is its text, a caption perhaps; where there is none it is the label or,
            without one, the key.
    """
    metadata = {
        **(neighbour.payload or {}),
        "key": neighbour.key,
        "label": neighbour.label,
        "similarity": neighbour.similarity,
    }
    value = (neighbour.payload or {}).get(text) if text else None
    if value is None:
        return neighbour.label or neighbour.key, metadata
    return value if isinstance(value, str) else json.dumps(value), metadata


def _image(query: Any, by: By) -> str | bytes:
    if isinstance(query, bytes):
        return query
    place = os.fspath(query) if isinstance(query, str | os.PathLike) else ""
    if place.startswith("data:"):
        return _inline(place)
    if by == "data" or not place:
        kinds = "bytes or a data: URL" if by == "data" else "a path, a URL, bytes or a data: URL"
        raise InvalidArgumentError(f"the query is no image: give {kinds}")
    return _fetched(place) if place.lower().startswith(("http://", "https://")) else place


def _inline(url: str) -> bytes:
    head, _, data = url.partition(",")
    try:
        if head.endswith(";base64"):
            return base64.b64decode(data, validate=True)
    except ValueError:  # also of letters that are not ASCII
        pass
    raise ImageError("the query's data: URL holds no base64")


def _fetched(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_FETCH_SECONDS) as answer:  # noqa: S310 (begins with http)
            data: bytes = answer.read(_MAX_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise UnavailableError(f"{url} cannot be fetched: {error}") from error
    if len(data) > _MAX_BYTES:
        raise ImageError(f"{url} has more than {_MAX_BYTES:,} bytes")
    return data
