"""A small gRPC server in this process that answers as it is told to, for tests of the clients."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped]

from imagekin.v1 import (
    collections_pb2,
    collections_pb2_grpc,
    common_pb2,
    embedder_pb2,
    embedder_pb2_grpc,
    searcher_pb2,
    searcher_pb2_grpc,
)

DIM = 4
BAD = b"bad"


def status(code: str, message: str, *, retry: float | None = None, field_name: str = "") -> status_pb2.Status:
    """Build a google.rpc.Status with the rich details asked for."""
    details: list[Any] = []
    if field_name:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field_name, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(retry * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code_pb2.Code.Value(code), message=message, details=packed)


def embedding(data: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The unit vector that the server gives an image: made of its bytes, so that order and content can be checked."""
    vector = np.frombuffer(hashlib.sha256(data).digest()[: DIM * 4], np.uint32).astype(np.float32)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@dataclass
class Script:
    """What the server does and what it saw.

    Attributes:
        failures: statuses that the next calls fail with, one each.
        serving: what the health check says.
        calls: name of each call that came in, in order of arrival.
        batches: number of members of each batch call.
        metadata: metadata of the last call.
        most_at_once: calls that were in flight at one time.
        gate: calls wait until it is set.
        items: what was upserted, by key.
        collections: what was made, by name.
    """

    failures: list[status_pb2.Status] = field(default_factory=list)
    serving: bool = True
    calls: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    metadata: dict[str, str | bytes] = field(default_factory=dict)
    most_at_once: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    items: dict[str, common_pb2.Item] = field(default_factory=dict)
    collections: dict[str, collections_pb2.Collection] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    now: int = 0

    @contextlib.contextmanager
    def call(self, name: str, context: grpc.ServicerContext, members: int = 0) -> Iterator[None]:
        """Note a call and fail it when the script says so."""
        with self.lock:
            self.calls.append(name)
            self.batches.append(members)
            self.metadata = dict(context.invocation_metadata())
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)
            failure = self.failures.pop(0) if self.failures else None
        try:
            self.gate.wait(10)
            if failure is not None:
                if failure.details:
                    context.abort_with_status(rpc_status.to_status(failure))
                plain = next(code for code in grpc.StatusCode if code.value[0] == failure.code)
                context.abort(plain, failure.message)
            yield
        finally:
            with self.lock:
                self.now -= 1


class _Embedder(embedder_pb2_grpc.EmbedderServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    def Embed(self, request: embedder_pb2.EmbedRequest, context: Any) -> embedder_pb2.EmbedResponse:  # noqa: N802
        with self.script.call("Embed", context, len(request.images)):
            results = []
            for image in request.images:
                if image.data.startswith(BAD):
                    error = common_pb2.ItemError(
                        status=status("INVALID_ARGUMENT", "no image", field_name="images.data")
                    )
                    results.append(embedder_pb2.EmbedResult(error=error))
                else:
                    results.append(embedder_pb2.EmbedResult(vector=embedding(image.data).astype("<f4").tobytes()))
            return embedder_pb2.EmbedResponse(results=results, dim=DIM, space="ik1-test")

    def EmbedStream(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    def ListModels(self, request: Any, context: Any) -> embedder_pb2.ListModelsResponse:  # noqa: N802
        with self.script.call("ListModels", context):
            model = embedder_pb2.Model(name="m", space="ik1-test", dim=DIM, image_height=8, image_width=9)
            model.metadata_json = '{"objective":"supcon"}'
            return embedder_pb2.ListModelsResponse(models=[model])


class _Searcher(searcher_pb2_grpc.SearcherServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    def Search(self, request: searcher_pb2.SearchRequest, context: Any) -> searcher_pb2.SearchResponse:  # noqa: N802
        with self.script.call("Search", context, len(request.queries)):
            results = []
            for query in request.queries:
                if query.image.data.startswith(BAD):
                    error = common_pb2.ItemError(status=status("INVALID_ARGUMENT", "no image"))
                    results.append(searcher_pb2.SearchResult(error=error))
                    continue
                name = query.key or query.image.data.decode(errors="replace")
                neighbour = searcher_pb2.Neighbour(key=f"near {name}", similarity=0.5, label="shoe")
                results.append(searcher_pb2.SearchResult(neighbours=[neighbour] * min(request.k, 3)))
            return searcher_pb2.SearchResponse(results=results)

    def Classify(  # noqa: N802
        self, request: searcher_pb2.ClassifyRequest, context: Any
    ) -> searcher_pb2.ClassifyResponse:
        with self.script.call("Classify", context, len(request.queries)):
            vote = searcher_pb2.Vote(label="shoe", share=0.75)
            found = searcher_pb2.Prediction(label="shoe", confidence=0.75, nearest_similarity=0.5, votes=[vote])
            unknown = searcher_pb2.Prediction(confidence=0.25)
            answers = [unknown if query.image.data.startswith(b"odd") else found for query in request.queries]
            return searcher_pb2.ClassifyResponse(
                results=[searcher_pb2.ClassifyResult(prediction=answer) for answer in answers]
            )

    Locate = None  # type: ignore[assignment]


class _Collections(collections_pb2_grpc.CollectionsServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    def Upsert(self, request: collections_pb2.UpsertRequest, context: Any) -> collections_pb2.UpsertResponse:  # noqa: N802
        with self.script.call("Upsert", context, len(request.items)):
            results = []
            for item in request.items:
                kind = "OUTCOME_REPLACED" if item.key in self.script.items else "OUTCOME_INSERTED"
                self.script.items[item.key] = item
                outcome = collections_pb2.UpsertResult.Outcome.Value(kind)
                results.append(collections_pb2.UpsertResult(outcome=outcome))
            return collections_pb2.UpsertResponse(results=results, sequence=len(self.script.items))

    def Delete(self, request: collections_pb2.DeleteRequest, context: Any) -> collections_pb2.DeleteResponse:  # noqa: N802
        with self.script.call("Delete", context, len(request.keys)):
            gone = [self.script.items.pop(key) for key in request.keys if key in self.script.items]
            return collections_pb2.DeleteResponse(deleted=len(gone), sequence=1)

    def Get(self, request: collections_pb2.GetRequest, context: Any) -> collections_pb2.GetResponse:  # noqa: N802
        with self.script.call("Get", context, len(request.keys)):
            found = [self.script.items[key] for key in request.keys if key in self.script.items]
            missing = [key for key in request.keys if key not in self.script.items]
            return collections_pb2.GetResponse(items=found, missing_keys=missing)

    def Scroll(self, request: collections_pb2.ScrollRequest, context: Any) -> collections_pb2.ScrollResponse:  # noqa: N802
        with self.script.call("Scroll", context):
            start = int(request.page_token or 0)
            items = list(self.script.items.values())
            end = start + request.page_size
            token = str(end) if end < len(items) else ""
            return collections_pb2.ScrollResponse(items=items[start:end], next_page_token=token)

    def CreateCollection(  # noqa: N802
        self, request: collections_pb2.CreateCollectionRequest, context: Any
    ) -> collections_pb2.CreateCollectionResponse:
        with self.script.call("CreateCollection", context):
            made = collections_pb2.Collection(
                name=request.name, space=request.space or "ik1-test", dim=request.dim or DIM
            )
            self.script.collections[request.name] = made
            return collections_pb2.CreateCollectionResponse(collection=made)

    def DescribeCollection(  # noqa: N802
        self, request: collections_pb2.DescribeCollectionRequest, context: Any
    ) -> collections_pb2.DescribeCollectionResponse:
        with self.script.call("DescribeCollection", context):
            if request.name not in self.script.collections:
                context.abort(grpc.StatusCode.NOT_FOUND, f"there is no collection {request.name!r}")
            return collections_pb2.DescribeCollectionResponse(collection=self.script.collections[request.name])

    def Count(self, request: Any, context: Any) -> collections_pb2.CountResponse:  # noqa: N802
        with self.script.call("Count", context):
            return collections_pb2.CountResponse(count=len(self.script.items))

    DropCollection = Facet = GetMap = GetMapKeys = None  # type: ignore[assignment]
    GetThumbnails = ListCollections = Snapshot = Update = UpsertStream = None  # type: ignore[assignment]


@contextlib.contextmanager
def scripted_server(script: Script, *, threads: int = 16) -> Iterator[str]:
    """Serve the script on a free port and yield the address."""
    script.gate.set()
    server = grpc.server(ThreadPoolExecutor(threads), options=[("grpc.max_receive_message_length", 64 * 2**20)])
    embedder_pb2_grpc.add_EmbedderServicer_to_server(_Embedder(script), server)
    searcher_pb2_grpc.add_SearcherServicer_to_server(_Searcher(script), server)
    collections_pb2_grpc.add_CollectionsServicer_to_server(_Collections(script), server)

    def check(request: bytes, context: grpc.ServicerContext) -> bytes:
        return b"\x08\x01" if script.serving else b"\x08\x02"

    health = {"Check": grpc.unary_unary_rpc_method_handler(check, bytes, bytes)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        script.gate.set()
        server.stop(0).wait(10)
