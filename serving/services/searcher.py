"""The Searcher service: find similar items, and classify images by them."""

# ruff: noqa: N802, D102 (the contract names and describes the methods)

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from imagekin.errors import FailedPreconditionError, ImagekinError, InvalidArgumentError
from imagekin.index.maps.saved import SIDE
from imagekin.index.types import ClassifyMethod, ClassifyOptions, SearchOptions
from imagekin.serving.collections.open_collections import CollectionStore, OpenCollection
from imagekin.serving.embedding.models import Models
from imagekin.serving.messages import Vector, check_count, check_range, write_neighbour, write_prediction
from imagekin.serving.searching.filters import given_filter
from imagekin.serving.searching.linear import predict
from imagekin.serving.searching.queries import Resolution, Resolved, model_for, resolve
from imagekin.serving.settings import Limits
from imagekin.serving.transport.call_info import Context
from imagekin.serving.transport.status import item_error
from imagekin.serving.transport.wire import join_members, write_members
from imagekin.v1 import searcher_pb2, searcher_pb2_grpc

DEFAULT_SEARCH_K = 10
_DEFAULTS = ClassifyOptions()

Method = searcher_pb2.ClassifyRequest.Method
Answer = TypeVar("Answer")
# Copying so much takes less time than handing it to a thread.
_JOINED_HERE_BYTES = 256 * 1024


class Exclusion(NamedTuple):
    """Items that the answer to one query leaves out, by key and by content."""

    keys: frozenset[str]
    content_hash: bytes | None


Ask = Callable[[Vector, Sequence[Exclusion]], Sequence[Answer]]


class SearcherService(searcher_pb2_grpc.SearcherServicer):
    """Search and classify. Neighbours are returned serialised, see `imagekin.serving.transport.wire`.

    Args:
        store: the collections.
        models: the loaded models.
        limits: ceilings.
    """

    def __init__(self, store: CollectionStore, models: Models, limits: Limits) -> None:
        self._store = store
        self._models = models
        self._limits = limits

    async def Search(  # type: ignore[override]
        self, request: searcher_pb2.SearchRequest, context: Context
    ) -> bytes:
        check_count(request.queries, self._limits.max_batch_items, "queries")
        bound = _similarity(request)
        ranged = bound is not None and not (request.group_by or request.diversity)
        options = SearchOptions(
            k=self._k(request.k, DEFAULT_SEARCH_K, self._limits.max_neighbours if ranged else self._limits.max_k),
            min_similarity=bound,
            with_payload=request.with_payload,
            with_vector=request.with_vector,
            filter=await given_filter(request),
            group_by=request.group_by,
            group_size=_group_size(request),
            diversity=check_range(request.diversity, 0, 1, "diversity"),
        )
        entry = await self._store.get(request.collection)
        self._check_size(len(request.queries), options, entry.dim)
        resolved = await resolve(request.queries, entry, self._models, timeout=context.time_remaining(), hashes=False)

        def ask(queries: Vector, exclusions: Sequence[Exclusion]) -> list[bytes]:
            exclude = [exclusion.keys for exclusion in exclusions] if any(e.keys for e in exclusions) else ()
            found = entry.collection.search(queries, dataclasses.replace(options, exclude=exclude))
            return [write_members(map(write_neighbour, neighbours)) for neighbours in found]

        answers = await _ask(entry, ("search", repr(options)), ask, resolved, leave_one_out=False, context=context)
        results = [
            searcher_pb2.SearchResult(error=item_error(answer)).SerializeToString()
            if isinstance(answer, ImagekinError)
            else answer
            for answer in answers
        ]
        if sum(map(len, results)) <= _JOINED_HERE_BYTES:
            return join_members(results)
        return await entry.read(join_members, results)

    async def Classify(self, request: searcher_pb2.ClassifyRequest, context: Context) -> searcher_pb2.ClassifyResponse:
        check_count(request.queries, self._limits.max_batch_items, "queries")
        entry = await self._store.get(request.collection)
        if request.method == Method.METHOD_LINEAR:
            answers = await self._classify_linear(request, entry, context)
        else:
            answers = await self._classify(request, entry, context)
        results = [
            searcher_pb2.ClassifyResult(error=item_error(answer)) if isinstance(answer, ImagekinError) else answer
            for answer in answers
        ]
        return searcher_pb2.ClassifyResponse(results=results)

    async def Locate(self, request: searcher_pb2.LocateRequest, context: Context) -> searcher_pb2.LocateResponse:
        check_count(request.queries, self._limits.max_batch_items, "queries")
        entry = await self._store.get(request.collection)
        resolved = await resolve(request.queries, entry, self._models, timeout=context.time_remaining(), hashes=False)
        keys = [query.key if query.WhichOneof("subject") == "key" else None for query in request.queries]
        good = [(one, key) for one, key in zip(resolved, keys, strict=True) if isinstance(one, Resolved)]
        vectors = np.stack([one.vector for one, _ in good]) if good else np.empty((0, entry.dim), np.float32)
        named = [key for _, key in good]
        places = iter((await entry.read(lambda: entry.collection.locate(vectors, named))).tolist())
        return searcher_pb2.LocateResponse(
            results=[
                searcher_pb2.LocateResult(error=item_error(one))
                if isinstance(one, ImagekinError)
                else _located(next(places), position)
                for position, one in enumerate(resolved)
            ]
        )

    async def _classify(
        self, request: searcher_pb2.ClassifyRequest, entry: OpenCollection, context: Context
    ) -> Sequence[searcher_pb2.ClassifyResult | ImagekinError]:
        method = _method(request.method)
        temperature, bound = _temperature(request.temperature), _similarity(request)
        if not temperature or bound is None:
            own = await entry.read(lambda: entry.collection.calibration(method))
            temperature = temperature or (own.temperature if own else _DEFAULTS.temperature)
            bound = own.min_similarity if own and bound is None else bound
        options = ClassifyOptions(
            method=method,
            k=self._k(request.k, _DEFAULTS.k, self._limits.max_k),
            temperature=temperature,
            min_similarity=bound,
            min_confidence=check_range(request.min_confidence, 0, 1, "min_confidence"),
            filter=await given_filter(request),
        )
        resolved = await resolve(
            request.queries, entry, self._models, timeout=context.time_remaining(), hashes=request.leave_one_out
        )

        def ask(queries: Vector, exclusions: Sequence[Exclusion]) -> list[searcher_pb2.ClassifyResult]:
            keys = [exclusion.keys for exclusion in exclusions] if any(e.keys for e in exclusions) else ()
            hashes = [e.content_hash for e in exclusions] if any(e.content_hash for e in exclusions) else ()
            exact = dataclasses.replace(options, exclude_keys=keys, exclude_hashes=hashes)
            predictions = entry.collection.classify(queries, exact)
            return [searcher_pb2.ClassifyResult(prediction=write_prediction(each)) for each in predictions]

        kind = ("classify", repr(options))
        return await _ask(entry, kind, ask, resolved, leave_one_out=request.leave_one_out, context=context)

    async def _classify_linear(
        self, request: searcher_pb2.ClassifyRequest, entry: OpenCollection, context: Context
    ) -> Sequence[searcher_pb2.ClassifyResult | ImagekinError]:
        if request.HasField("min_similarity"):
            raise InvalidArgumentError(
                "the linear method knows no similarity: use min_confidence", field="min_similarity"
            )
        if request.HasField("filter"):
            raise InvalidArgumentError("the linear method asks no items: leave the filter out", field="filter")
        temperature = _temperature(request.temperature) or 1.0
        least = check_range(request.min_confidence, 0, 1, "min_confidence")
        model = model_for(entry, self._models)
        if not model.metadata.class_names:
            raise FailedPreconditionError(
                f"model {model.name} has no linear head: classify by knn or prototype", field="method"
            )
        answers: list[searcher_pb2.ClassifyResult | ImagekinError] = []
        for position, resolution in enumerate(
            await resolve(request.queries, entry, self._models, timeout=context.time_remaining(), hashes=False)
        ):
            if isinstance(resolution, ImagekinError):
                answers.append(resolution)
            elif resolution.logits is None:
                field = f"queries[{position}]"
                answers.append(InvalidArgumentError("the linear method takes images only", field=field))
            else:
                prediction = predict(resolution.logits, model.metadata.class_names, temperature, least)
                answers.append(searcher_pb2.ClassifyResult(prediction=write_prediction(prediction)))
        return answers

    @staticmethod
    def _k(k: int, default: int, most: int) -> int:
        if k > most:
            raise InvalidArgumentError(f"k must be 1 to {most}, or 0 for {default}", field="k")
        return k or default

    def _check_size(self, queries: int, options: SearchOptions, dim: int) -> None:
        """Refuse a search whose answer would be too large before any work is spent on it."""
        neighbours = queries * options.k
        if neighbours > self._limits.max_neighbours:
            raise InvalidArgumentError(
                f"queries × k must be at most {self._limits.max_neighbours}, not {neighbours}", field="k"
            )
        if options.with_vector and neighbours * dim * 4 > self._limits.max_message_bytes:
            raise InvalidArgumentError(
                f"the vectors of {neighbours} neighbours take more than {self._limits.max_message_bytes} bytes: "
                "ask with fewer queries or a smaller k",
                field="with_vector",
            )


async def _ask(
    entry: OpenCollection,
    kind: tuple[str, str],
    ask: Ask[Answer],
    resolved: Sequence[Resolution],
    *,
    leave_one_out: bool,
    context: Context,
) -> list[Answer | ImagekinError]:
    """Search with the queries that have vectors, and put the answers into their places.

    `kind` holds the options as text, because as values a filter for 1 would equal one for true.
    """
    good = [resolution for resolution in resolved if isinstance(resolution, Resolved)]
    if not good:
        return [resolution for resolution in resolved if isinstance(resolution, ImagekinError)]
    exclusions = [Exclusion(each.keys, each.content_hash if leave_one_out else None) for each in good]
    queries = np.stack([each.vector for each in good])
    timeout = context.time_remaining()
    answers = iter(await entry.searches.ask(kind, ask, queries, exclusions, timeout=timeout))
    return [each if isinstance(each, ImagekinError) else next(answers) for each in resolved]


def _located(place: tuple[int, int], position: int) -> searcher_pb2.LocateResult:
    if place[0] > SIDE:
        error = FailedPreconditionError("none of its neighbours is on the map", field=f"queries[{position}]")
        return searcher_pb2.LocateResult(error=item_error(error))
    return searcher_pb2.LocateResult(x=place[0], y=place[1])


def _group_size(request: searcher_pb2.SearchRequest) -> int:
    if request.group_size and not request.group_by:
        raise InvalidArgumentError("group_size goes with group_by: set both", field="group_size")
    return request.group_size or 1


def _method(method: int) -> ClassifyMethod:
    if method in (Method.METHOD_UNSPECIFIED, Method.METHOD_KNN):
        return ClassifyMethod.KNN
    if method == Method.METHOD_PROTOTYPE:
        return ClassifyMethod.PROTOTYPE
    raise InvalidArgumentError(f"no method {method}: use knn, prototype or linear", field="method")


def _similarity(request: searcher_pb2.SearchRequest | searcher_pb2.ClassifyRequest) -> float | None:
    if not request.HasField("min_similarity"):
        return None
    return check_range(request.min_similarity, -1, 1, "min_similarity")


def _temperature(temperature: float) -> float:
    if not 0 <= temperature < float("inf"):
        raise InvalidArgumentError("temperature must be greater than 0, or 0 for the default", field="temperature")
    return temperature
