"""Answer with the review of a collection: JSON on a line each, first of the progress, last of what was found.

A review takes as long as a search for every item, so that progress is told meanwhile. Its searches are calls of their
own, under the caller's token: limits, fairness and metrics are those of any search.
"""

import asyncio
import dataclasses
import functools
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, cast

import msgspec
import numpy as np
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from imagekin.errors import InvalidArgumentError, ResourceExhaustedError
from imagekin.index.review.opinions import Vectors
from imagekin.index.review.review import Course, Found, NeighboursOf, NextItems, Options, Question
from imagekin.serving.http.endpoint import HttpContext, error_response
from imagekin.serving.observability.logs import REQUEST_ID, request_id
from imagekin.serving.settings import Limits
from imagekin.serving.transport.bodies import Body
from imagekin.serving.transport.call_info import CallInfo, Context
from imagekin.serving.transport.calls import Calls
from imagekin.serving.transport.status import public_error
from imagekin.types import Neighbour
from imagekin.v1 import collections_pb2, common_pb2, searcher_pb2

PATH = "/v1/collections/{collection}/review"
MEDIA_TYPE = "application/x-ndjson"
# A review holds about 5 KB of each item; the command has no bound.
MOST_ITEMS = 50_000
_MOST_FINDINGS = 10_000
_MOST_NEIGHBOURS = 200
_MOST_REVIEWS = 2
_PATIENCE_SECONDS = 30.0
_COUNT = "/imagekin.v1.Collections/Count"
_SCROLL = "/imagekin.v1.Collections/Scroll"
_SEARCH = "/imagekin.v1.Searcher/Search"
_THUMBNAILS = "/imagekin.v1.Collections/GetThumbnails"


def review_route(calls: Calls, limits: Limits) -> BaseRoute:
    """Return the route of a review: `GET …/review`."""
    running = 0

    async def answer(request: Request) -> Response:
        nonlocal running
        asker = _Asker(request, calls)
        try:
            options = _options(request, limits)
            # Refuses whoever may not read the collection, before anything is begun.
            total = await asker.count()
            if running >= _MOST_REVIEWS:
                raise ResourceExhaustedError("other reviews are in progress: try again later", retry_after=5.0)
        except Exception as error:
            return error_response(public_error(error, PATH, asker.identity), asker.identity)
        # Before anything else is awaited: requests that came together would all find room.
        running += 1
        headers = {"cache-control": "no-store", REQUEST_ID: asker.identity}
        return _Counted(_lines(asker, options, total), leave, media_type=MEDIA_TYPE, headers=headers)

    def leave() -> None:
        nonlocal running
        running -= 1

    return Route(PATH, answer)


class _Counted(StreamingResponse):
    """An answer that calls a function at its end, however it ends."""

    def __init__(
        self, lines: AsyncIterator[bytes], leave: Callable[[], None], *, media_type: str, headers: Mapping[str, str]
    ) -> None:
        super().__init__(lines, media_type=media_type, headers=headers)
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _lines(asker: "_Asker", options: Options, total: int) -> AsyncIterator[bytes]:
    try:
        async for said in _review(asker, options, total):
            yield msgspec.json.encode(said) + b"\n"
    except Exception as error:
        public = public_error(error, PATH, asker.identity)
        yield msgspec.json.encode({"error": {"code": public.code, "message": str(public)}}) + b"\n"


async def _review(asker: "_Asker", options: Options, total: int) -> AsyncIterator[dict[str, Any]]:
    """Drive a review; yield the progress, and at last the findings."""
    course = Course(options)
    step: Question | Found = course.question
    total = total if options.items is None else min(total, options.items)
    read, told = 0, 0.0
    while not isinstance(step, Found):
        if isinstance(step, NextItems):
            given: Any = await asker.items(step)
            read += len(given)
        elif isinstance(step, NeighboursOf):
            given = await asker.neighbours(step)
        else:
            given = await asker.pictures(step.keys)
        step = await asyncio.to_thread(course.answer, given)
        if (now := time.monotonic()) >= told + 0.2:
            told = now
            # All items are read twice: to learn from their labels, and to judge them.
            yield {"done": min(read // 2, total), "total": total}
    yield dataclasses.asdict(step)


class _Asker:
    """Make the calls of a review for one caller.

    Attributes:
        identity: the request's id.
    """

    def __init__(self, request: Request, calls: Calls) -> None:
        self._request = request
        self._calls = calls
        self._collection = request.path_params["collection"]
        self._token = ""
        self._ended = False
        self.identity = request_id(request.headers.items())

    @functools.cached_property
    def _context(self) -> Context:
        """Context of all calls, so that the caller's time is that of the review."""
        return cast(Context, HttpContext(self._request))

    async def count(self) -> int:
        answer: Any = await self._call(_COUNT, collections_pb2.CountRequest(collection=self._collection))
        return int(answer.count)

    async def items(self, asked: NextItems) -> list[tuple[str, str, Vectors]]:
        """Return the next items."""
        if asked.anew:
            self._token, self._ended = "", False
        if self._ended:
            return []
        request = collections_pb2.ScrollRequest(
            collection=self._collection, page_size=asked.count, page_token=self._token, with_vector=True
        )
        page = collections_pb2.ScrollResponse.FromString(await self._bytes(_SCROLL, request))
        self._token = page.next_page_token
        self._ended = not self._token
        return [(item.key, item.label, np.frombuffer(item.vector.data, "<f4")) for item in page.items]

    async def neighbours(self, asked: NeighboursOf) -> list[list[Neighbour] | None]:
        """Return the neighbours of items, None for one that is gone."""
        queries = [common_pb2.Query(key=key) for key in asked.keys]
        request = searcher_pb2.SearchRequest(collection=self._collection, queries=queries, k=asked.count)
        found = searcher_pb2.SearchResponse.FromString(await self._bytes(_SEARCH, request))
        return [
            None
            if result.HasField("error")
            else [Neighbour(one.key, one.similarity, one.label or None) for one in result.neighbours]
            for result in found.results
        ]

    async def pictures(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the thumbnails of items, None for one without."""
        request = collections_pb2.GetThumbnailsRequest(collection=self._collection, keys=keys)
        found: Any = await self._call(_THUMBNAILS, request)
        return [one.jpeg or None for one in found.thumbnails]

    async def _bytes(self, method: str, request: Message) -> bytes:
        answer = await self._call(method, request)
        return answer if isinstance(answer, bytes) else answer.SerializeToString()

    async def _call(self, method: str, request: Message) -> Message | bytes:
        """Make a call; where there is too much to do, wait a while."""
        headers = self._request.headers.items()

        async def read() -> Body:
            return Body(request, 0)

        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                call = CallInfo(method, self.identity, time.monotonic(), headers)
                return await self._calls.call(call, self._context, read)
            except ResourceExhaustedError as error:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(min(error.retry_after or 1.0, 5.0))


def _options(request: Request, limits: Limits) -> Options:
    """Read the parameters; the steps are within the limits of the calls.

    Raises:
        InvalidArgumentError: one is unknown, given twice, or out of its range.
    """
    known = {"neighbours": (1, _MOST_NEIGHBOURS), "limit": (1, _MOST_FINDINGS), "next": (0, _MOST_FINDINGS)}
    given: dict[str, float] = {}
    for name, text in request.query_params.multi_items():
        low, high = (0, 1) if name == "duplicates" else known.get(name, (math.nan, math.nan))
        if math.isnan(low):
            names = ", ".join((*known, "duplicates"))
            raise InvalidArgumentError(f"no parameter {name[:80]!r} here: there is {names}", field=name[:80])
        if name in given:
            raise InvalidArgumentError(f"{name} is given twice", field=name)
        try:
            number = float(text[:40]) if name == "duplicates" else int(text[:40])
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise InvalidArgumentError(f"{name} must be a number from {low} to {high:,}", field=name)
        given[name] = number
    base = Options()
    neighbours = int(given.get("neighbours", base.neighbours))
    at_once = min(base.at_once, limits.max_batch_items, limits.max_keys, limits.max_neighbours // neighbours)
    return Options(
        neighbours=neighbours,
        duplicates=given.get("duplicates"),
        limit=int(given.get("limit", base.limit)),
        questions=int(given.get("next", base.questions)),
        items=MOST_ITEMS,
        at_once=max(at_once, 1),
    )
