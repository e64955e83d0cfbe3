"""The async client: embed, search, classify and keep images on an imagekin server."""

import os
from collections.abc import AsyncGenerator, Iterable
from types import TracebackType
from typing import Any, Literal, Self, cast, overload

import numpy as np
from numpy.typing import NDArray

from imagekin.client import calls, connection, conversions, query_inputs, retries
from imagekin.client.async_collections import AsyncCollectionCalls
from imagekin.client.async_transport import AsyncTransport
from imagekin.client.image_inputs import as_images
from imagekin.client.local import AsyncLocalServer, ModelFiles
from imagekin.errors import ImagekinError
from imagekin.types import Errors, Examples, FilterLike, ImageLike, Method, Neighbour, Prediction, Vector


class AsyncClient(AsyncCollectionCalls):
    """A connection to an imagekin server, for one event loop. Close it or use it as a context manager.

    Series of any length are cut into messages that the server accepts, several of which are in flight at once; results
    come in the order of the members. With `errors="raise"` the first member that was not served raises its error; with
    `errors="return"` the error stands in its place. A call that fails as a whole always raises.

    Every method raises ImagekinErrors only: UnavailableError when there is no server, DeadlineExceededError after
    `timeout`, InvalidArgumentError, NotFoundError, FailedPreconditionError, … as the server answers.
    """

    def __init__(
        self,
        address: str = "localhost:50051",
        *,
        token: str | None = None,
        tls: connection.TlsLike = False,
        timeout: float = 60.0,
        in_flight: int = 4,
        limits: calls.MessageLimits | None = None,
        retry: retries.RetryPolicy | None = None,
    ) -> None:
        """Prepare a connection; nothing is sent yet.

        Args:
            address: HOST:PORT.
            token: bearer token, sent with every call; use it with `tls` beyond the own machine.
            tls: True for the system's certificates, a PEM file of certificates to trust, or `imagekin.Tls`.
            timeout: seconds that one message may take, tries after a failure included.
            in_flight: messages of one series that are in flight at once.
            limits: bounds of one message, `imagekin.MessageLimits`.
            retry: when a failed call is tried again, `imagekin.RetryPolicy`.
        """
        checked = connection.checked(address, token, tls, timeout, in_flight, limits, retry)
        self.address = checked.address
        self._transport = AsyncTransport(checked)
        self._server: AsyncLocalServer | None = None

    @classmethod
    async def local(
        cls,
        data_dir: str | os.PathLike[str],
        *,
        model: ModelFiles | None = None,
        read_only: bool = False,
        timeout: float = 60.0,
        in_flight: int = 4,
    ) -> Self:
        """Work on a data folder of this machine, without a server that others could reach.

        A process is started for it and ends with the client. One process at a time may write to a folder; others open
        it with `read_only`. Needs what a server needs: `pip install 'imagekin[cpu]'`.

        Args:
            data_dir: folder of the collections, made if there is none.
            model: model artifact that embeds images, or several by name, the first being the default; without one,
                vectors and keys can be searched.
            read_only: never write; other processes may have the folder open.
            timeout: seconds that one message may take.
            in_flight: messages of one series that are in flight at once.

        Raises:
            ImagekinError: the folder or the model cannot be used; the message says why.
        """
        server = await AsyncLocalServer.start(data_dir, model, read_only=read_only)
        client = cls(server.address, timeout=timeout, in_flight=in_flight)
        client._server = server
        return client

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; calls under way end with CancelledError. Safe to call twice."""
        await self._transport.close()
        if self._server is not None:
            await self._server.stop()

    # Embed.

    @overload
    async def embed(
        self, images: ImageLike | Iterable[ImageLike], *, model: str = "", errors: Literal["raise"] = "raise"
    ) -> Vector: ...
    @overload
    async def embed(
        self, images: ImageLike | Iterable[ImageLike], *, model: str = "", errors: Literal["return"]
    ) -> list[Vector | ImagekinError]: ...
    async def embed(
        self, images: ImageLike | Iterable[ImageLike], *, model: str = "", errors: Errors = "raise"
    ) -> Vector | list[Vector | ImagekinError]:
        """Embed images.

        Args:
            images: a series of paths, bytes, arrays or Pillow images, or a single one.
            model: the model's name; empty takes the server's default model.
            errors: see the class.

        Returns:
            float32 [N, D], unit length, in order ([0, 0] for no images); with `errors="return"` a list of N, each a
            float32 [D] or the image's error.
        """
        results = await self._transport.collect(calls.embed_series(model), as_images(images), errors)
        if errors == "return":
            return results
        return np.stack(cast("list[Vector]", results)) if results else np.empty((0, 0), np.float32)

    def iter_embed(
        self, images: ImageLike | Iterable[ImageLike | ImagekinError], *, model: str = ""
    ) -> AsyncGenerator[Vector | ImagekinError, None]:
        """Yield the embedding (float32 [D]) or the error of each image, holding only a few batches in memory.

        An error given in place of an image is yielded in its place.
        """
        return self._transport.results(calls.embed_series(model), as_images(images))

    # Search and classify.

    @overload
    async def search(
        self,
        images: ImageLike | Iterable[ImageLike] | None = None,
        *,
        collection: str,
        vectors: NDArray[np.generic] | Iterable[Any] | None = None,
        keys: Iterable[str] | None = None,
        examples: Examples | Iterable[Examples] | None = None,
        k: int = 10,
        filter: FilterLike | None = None,
        min_similarity: float | None = None,
        with_payload: bool = False,
        with_vector: bool = False,
        group_by: str = "",
        group_size: int = 0,
        diversity: float = 0.0,
        errors: Literal["raise"] = "raise",
    ) -> list[list[Neighbour]]: ...
    @overload
    async def search(
        self,
        images: ImageLike | Iterable[ImageLike] | None = None,
        *,
        collection: str,
        vectors: NDArray[np.generic] | Iterable[Any] | None = None,
        keys: Iterable[str] | None = None,
        examples: Examples | Iterable[Examples] | None = None,
        k: int = 10,
        filter: FilterLike | None = None,
        min_similarity: float | None = None,
        with_payload: bool = False,
        with_vector: bool = False,
        group_by: str = "",
        group_size: int = 0,
        diversity: float = 0.0,
        errors: Literal["return"],
    ) -> list[list[Neighbour] | ImagekinError]: ...
    async def search(
        self,
        images: ImageLike | Iterable[ImageLike] | None = None,
        *,
        collection: str,
        vectors: NDArray[np.generic] | Iterable[Any] | None = None,
        keys: Iterable[str] | None = None,
        examples: Examples | Iterable[Examples] | None = None,
        k: int = 10,
        filter: FilterLike | None = None,  # noqa: A002
        min_similarity: float | None = None,
        with_payload: bool = False,
        with_vector: bool = False,
        group_by: str = "",
        group_size: int = 0,
        diversity: float = 0.0,
        errors: Errors = "raise",
    ) -> list[list[Neighbour]] | list[list[Neighbour] | ImagekinError]:
        """Find the nearest neighbours of each query. Exactly one of images, vectors, keys and examples is given.

        Args:
            images: images that the collection's model embeds first.
            collection: the collection's name.
            vectors: embeddings of the collection's space, [N, D] or [D].
            keys: keys of stored items, each of which is left out of its own answer.
            examples: stored items and vectors that the answer should resemble, and others that it should not.
            k: neighbours per query, 1 to 10,000, with `min_similarity` (and neither groups nor diversity) to 100,000;
                fewer only when fewer match.
            filter: only items that match are found, for example `label = "shoe" AND payload.price < 10`.
            min_similarity: leaves out neighbours that are less similar, −1 to 1.
            with_payload: fill in the neighbours' payloads.
            with_vector: fill in the neighbours' vectors.
            group_by: `label` or `payload.` and a path: at most `group_size` neighbours for each of its values.
            group_size: neighbours of one group, 1 to 100; 0 means 1.
            diversity: from 0 (only similarity) to 1 (only diversity), by maximal marginal relevance; k is then at most
                200.
            errors: see the class.

        Returns:
            For each query its neighbours, most similar first; with `errors="return"` or its error.
        """
        asked = calls.SearchParameters(
            collection, k, filter, min_similarity, with_payload, with_vector, group_by, group_size, diversity
        )
        noun, part, members = query_inputs.choose(images, vectors, keys, examples)
        return await self._transport.collect(calls.search_series(noun, part, asked), members, errors)

    def iter_search(
        self, images: Iterable[ImageLike | ImagekinError], asked: calls.SearchParameters
    ) -> AsyncGenerator[list[Neighbour] | ImagekinError, None]:
        """Yield the neighbours or the error of each image, holding only a few batches in memory."""
        return self._transport.results(calls.search_series("images", conversions.image_query, asked), images)

    @overload
    async def classify(
        self,
        images: ImageLike | Iterable[ImageLike] | None = None,
        *,
        collection: str,
        vectors: NDArray[np.generic] | Iterable[Any] | None = None,
        keys: Iterable[str] | None = None,
        method: Method = "knn",
        k: int = 0,
        temperature: float = 0.0,
        min_similarity: float | None = None,
        min_confidence: float = 0.0,
        filter: FilterLike | None = None,
        leave_one_out: bool = False,
        errors: Literal["raise"] = "raise",
    ) -> list[Prediction]: ...
    @overload
    async def classify(
        self,
        images: ImageLike | Iterable[ImageLike] | None = None,
        *,
        collection: str,
        vectors: NDArray[np.generic] | Iterable[Any] | None = None,
        keys: Iterable[str] | None = None,
        method: Method = "knn",
        k: int = 0,
        temperature: float = 0.0,
        min_similarity: float | None = None,
        min_confidence: float = 0.0,
        filter: FilterLike | None = None,
        leave_one_out: bool = False,
        errors: Literal["return"],
    ) -> list[Prediction | ImagekinError]: ...
    async def classify(
        self,
        images: ImageLike | Iterable[ImageLike] | None = None,
        *,
        collection: str,
        vectors: NDArray[np.generic] | Iterable[Any] | None = None,
        keys: Iterable[str] | None = None,
        method: Method = "knn",
        k: int = 0,
        temperature: float = 0.0,
        min_similarity: float | None = None,
        min_confidence: float = 0.0,
        filter: FilterLike | None = None,  # noqa: A002
        leave_one_out: bool = False,
        errors: Errors = "raise",
    ) -> list[Prediction] | list[Prediction | ImagekinError]:
        """Classify each query. Exactly one of images, vectors and keys is given.

        Args:
            images: images that the collection's model embeds first.
            collection: the collection whose labelled items decide.
            vectors: embeddings of the collection's space, [N, D] or [D].
            keys: keys of stored items, which do not vote for themselves.
            method: `knn` (votes of the nearest labelled items), `prototype` (nearest class mean) or `linear` (the
                model's own head; images only).
            k: neighbours that vote, 0 for the server's default of 20.
            temperature: softmax temperature, 0 for the server's default.
            min_similarity: answer "unknown" when the nearest labelled item is less similar, −1 to 1.
            min_confidence: answer "unknown" when the confidence is lower, 0 to 1.
            filter: only items that match vote.
            leave_one_out: items that are the query image itself do not vote.
            errors: see the class.

        Returns:
            For each query a Prediction, whose label is None for "unknown"; with `errors="return"` or its error.
        """
        asked = calls.ClassifyParameters(
            collection, method, k, temperature, min_similarity, min_confidence, filter, leave_one_out
        )
        noun, part, members = query_inputs.choose(images, vectors, keys)
        return await self._transport.collect(calls.classify_series(noun, part, asked), members, errors)

    def iter_classify(
        self, images: Iterable[ImageLike | ImagekinError], asked: calls.ClassifyParameters
    ) -> AsyncGenerator[Prediction | ImagekinError, None]:
        """Yield the prediction or the error of each image, holding only a few batches in memory."""
        return self._transport.results(calls.classify_series("images", conversions.image_query, asked), images)

    # Health.

    async def health(self) -> bool:
        """Ask the server whether it is serving; raises UnavailableError when it cannot be reached."""
        return await self._transport.is_serving()

    async def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the server is serving; raises UnavailableError when it is not within `timeout` seconds."""
        await self._transport.wait_ready(timeout)
