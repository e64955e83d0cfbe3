"""Spans of calls reach a collector: a real receiver of OTLP, a real server, real calls."""

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from imagekin.errors import InvalidArgumentError
from imagekin.serving.settings import Settings
from imagekin.v1 import embedder_pb2, searcher_pb2
from tests.artifacts import tiny_artifact
from tests.serving.running import code, image, running

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Receives spans as an OpenTelemetry collector does."""

    port: int = 0
    resources: list[Any] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (the method's name in the protocol)
        """Keep the spans."""
        with self.lock:
            self.resources.extend(request.resource_spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> dict[str, Any]:
        """Return the spans by name."""
        found = (span for each in self.resources for scope in each.scope_spans for span in scope.spans)
        return {span.name: span for span in found}


@pytest.fixture
def collector() -> Iterator[Collector]:
    receiver = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    register: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    register(receiver, server)
    receiver.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield receiver
    server.stop(None).wait()


def settings(folder: Path, endpoint: str) -> Settings:
    model = tiny_artifact(folder / "model.onnx")
    return Settings(address="127.0.0.1:0", models=(("tiny", model),), data_dir=folder / "data", otlp_endpoint=endpoint)


def attributes(span: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}


def test_a_call_is_a_span_under_the_callers_own(tmp_path: Path, collector: Collector) -> None:
    parent = ("traceparent", f"00-{TRACE}-{PARENT}-01")
    request = embedder_pb2.EmbedRequest(images=[image(1)])
    began = time.time_ns()
    with running(settings(tmp_path, f"http://127.0.0.1:{collector.port}")) as server:
        server.embedder.Embed(request, metadata=(parent, ("x-request-id", "mine")), timeout=20)
        with pytest.raises(grpc.RpcError) as failed:
            server.searcher.Search(searcher_pb2.SearchRequest(collection="none"), timeout=20)
    spans = collector.spans()
    span = spans["imagekin.v1.Embedder/Embed"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(span) == {
        "rpc.system": "grpc",
        "rpc.service": "imagekin.v1.Embedder",
        "rpc.method": "Embed",
        "rpc.response.status_code": "OK",
        "imagekin.request_id": "mine",
    }
    assert began <= span.start_time_unix_nano < span.end_time_unix_nano <= time.time_ns()
    wrong = spans["imagekin.v1.Searcher/Search"]
    assert attributes(wrong)["rpc.response.status_code"] == code(failed.value).name
    assert wrong.status.code == wrong.status.STATUS_CODE_ERROR
    assert not wrong.parent_span_id
    assert "imagekin" in str(collector.resources[0].resource)


@pytest.mark.parametrize("value", ["", "00-zz-zz-01", "x" * 5000])
def test_a_traceparent_that_is_none_begins_a_new_trace(tmp_path: Path, collector: Collector, value: str) -> None:
    with running(settings(tmp_path, f"http://127.0.0.1:{collector.port}")) as server:
        server.embedder.Embed(
            embedder_pb2.EmbedRequest(images=[image(1)]), metadata=(("traceparent", value),), timeout=20
        )
    assert not collector.spans()["imagekin.v1.Embedder/Embed"].parent_span_id


@pytest.mark.parametrize("endpoint", ["", "collector:4317", "ftp://a:1", "http://", "http://a", "http://a:99999"])
def test_an_endpoint_that_is_none_is_refused_at_the_start(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(InvalidArgumentError, match="OTLP endpoint"):
        settings(tmp_path, endpoint)
