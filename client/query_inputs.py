"""Choose the queries of a search or a classification: exactly one of images, vectors, keys and examples. Pure."""

from collections.abc import Callable, Iterable
from typing import Any

from imagekin.client import conversions, image_inputs
from imagekin.errors import InvalidArgumentError
from imagekin.types import Examples, ImageLike
from imagekin.v1 import common_pb2

Part = Callable[[Any], common_pb2.Query]


def choose(
    images: ImageLike | Iterable[ImageLike] | None,
    vectors: Any,
    keys: Iterable[str] | None,
    examples: Examples | Iterable[Examples] | None = None,
) -> tuple[str, Part, Iterable[Any]]:
    """Return the noun for the members, the function that makes a query of a member, and the members.

    Raises:
        InvalidArgumentError: none is given, or more than one.
    """
    if sum(given is not None for given in (images, vectors, keys, examples)) != 1:
        raise InvalidArgumentError("give exactly one of images, vectors, keys and examples", field="queries")
    if images is not None:
        return "images", conversions.image_query, image_inputs.as_images(images)
    if vectors is not None:
        return "vectors", conversions.vector_query, image_inputs.as_vectors(vectors)
    if examples is not None:
        return "examples", conversions.examples_query, [examples] if isinstance(examples, Examples) else examples
    assert keys is not None  # noqa: S101  told to the type checker; ruled out above
    return "keys", conversions.key_query, [keys] if isinstance(keys, str) else keys
