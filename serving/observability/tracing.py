"""Send calls as OpenTelemetry spans over OTLP; needs `--otlp-endpoint` and the extra `otel`.

A span is made when its call has ended, with the caller's span (W3C `traceparent`) as its parent: a call costs one
object and never waits for the collector. OpenTelemetry's own bounded queue drops spans that cannot be sent.
Sampling and resource attributes follow OpenTelemetry's variables (`OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES` …).
"""

import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from imagekin.errors import InvalidArgumentError

NAME = "imagekin"
_HEADERS = ("traceparent", "tracestate")
_OK = "OK"


class Tracer:
    """Send spans to a collector. `ended` is thread-safe.

    Args:
        endpoint: `http://HOST:PORT` of an OTLP/gRPC receiver, or `https://…` with TLS.

    Raises:
        InvalidArgumentError: the endpoint is no such address.
        ModuleNotFoundError: OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str) -> None:
        check_endpoint(endpoint)
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # Resource.create lets OTEL_SERVICE_NAME win over the name given here.
        self._provider = TracerProvider(resource=Resource.create({"service.name": NAME}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer(NAME)
        self._parent_of = TraceContextTextMapPropagator().extract
        self._server = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)

    def ended(
        self, method: str, code: str, seconds: float, request_id: str, metadata: Iterable[tuple[str, str | bytes]]
    ) -> None:
        """Send the span of a call that has just ended.

        Args:
            method: `/package.Service/Method`.
            code: name of its status code.
            seconds: how long it took.
            request_id: its id.
            metadata: the caller's metadata, which may name the parent span.
        """
        now = time.time_ns()
        carrier = {key: value for key, value in metadata if key in _HEADERS and isinstance(value, str)}
        service, _, name = method.removeprefix("/").partition("/")
        span = self._tracer.start_span(
            f"{service}/{name}",
            context=self._parent_of(carrier),
            kind=self._server,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "rpc.response.status_code": code,
                "imagekin.request_id": request_id,
            },
            start_time=now - int(seconds * 1e9),
        )
        if code != _OK:
            span.set_status(self._failed)
        span.end(now)

    def close(self) -> None:
        """Send the remaining spans and stop."""
        self._provider.shutdown()


def check_endpoint(endpoint: str) -> None:
    """Raise InvalidArgumentError unless this is `http://HOST:PORT` or `https://HOST:PORT`."""
    try:
        parts = urlsplit(endpoint)
        well = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port is not None
    except ValueError:
        well = False
    if not well:
        raise InvalidArgumentError(
            f"{endpoint[:200]!r} is no OTLP endpoint: give http://HOST:PORT or https://HOST:PORT", field="otlp_endpoint"
        )
