"""What a server can be told: address, models, data and limits, checked before anything is opened."""

import ipaddress
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from imagekin.errors import InvalidArgumentError
from imagekin.index.milvus.connection import parse_store
from imagekin.serving.observability.logs import FORMATS, LEVELS
from imagekin.serving.observability.tracing import check_endpoint

MEBIBYTE = 2**20
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<host>[^:\[\]/\s]+)):(?P<port>[0-9]{1,5})\Z")


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings on what one request, and all requests together, may cost.

    Attributes:
        max_image_bytes: bytes of one image file.
        max_pixels: pixels of one image, read from its header before it is decoded.
        max_batch_items: images, queries or items of one request.
        max_k: neighbours per query.
        max_keys: keys of one Get or Delete, items of one Scroll page.
        max_neighbours: neighbours of one answer, over all its queries.
        max_message_bytes: bytes of one message or answer; gRPC itself refuses a message of twice as many.
        max_queue: images waiting or in work, per model.
        max_queue_bytes: bytes of those images.
        max_queued_searches: queries waiting, per collection.
        max_concurrent_streams: calls at one time on one connection.
        max_concurrent_calls: calls at one time on all connections.

    Raises:
        InvalidArgumentError: a limit is not positive, or one batch could not fit into the queue.
    """

    max_image_bytes: int = 20 * MEBIBYTE
    max_pixels: int = 64_000_000
    max_batch_items: int = 256
    max_k: int = 10_000
    max_keys: int = 10_000
    max_neighbours: int = 100_000
    max_message_bytes: int = 64 * MEBIBYTE
    max_queue: int = 2_048
    max_queue_bytes: int = 256 * MEBIBYTE
    max_queued_searches: int = 4_096
    max_concurrent_streams: int = 256
    max_concurrent_calls: int = 2_048

    def __post_init__(self) -> None:
        for part in fields(self):
            if getattr(self, part.name) < 1:
                raise InvalidArgumentError(f"{part.name} must be at least 1", field=part.name)
        if self.max_queue < self.max_batch_items:
            raise InvalidArgumentError("max_queue must be at least max_batch_items", field="max_queue")
        if self.max_queue_bytes < self.max_message_bytes:
            raise InvalidArgumentError("max_queue_bytes must be at least max_message_bytes", field="max_queue_bytes")


@dataclass(frozen=True, slots=True)
class Settings:
    """A server's settings.

    Attributes:
        address: `HOST:PORT` to listen on (`[HOST]:PORT` for IPv6); port 0 takes a free one.
        models: name and path of each model artifact; the first one is the default.
        data_dir: folder of the collections; None for none.
        store: address of the store of the collections, see `imagekin.index.milvus.connection.parse_store`; None for
            none.
        read_only: serve the collections without ever writing.
        allow_insecure: listen beyond loopback although there is neither TLS nor a token.
        device: of the encoders: `auto`, `cpu` or `cuda`.
        index_device: of collections in a data folder, likewise.
        limits: ceilings.
        decode_workers: threads per model that decode images; 0 means one per core.
        encoder_sessions: inferences at one time, per model; 0 takes what `imagekin tune` measured, else fills the
            cores.
        encoder_threads: threads of one inference; 0 likewise.
        encoder_batch: images of one inference at most; 0 likewise.
        cuda_graphs: on a GPU, record each batch size as a CUDA graph.
        search_workers: threads that search and write; 0 means one per core, at least 4.
        max_search_batch: queries of one index search.
        drain_seconds: time that calls in flight get to finish after SIGTERM.
        port_file: file that receives the port as text once the server is ready; None for none.
        metrics_address: `HOST:PORT` of /metrics for Prometheus; None for none.
        metrics_port_file: the same for the port of /metrics.
        log_level: `debug`, `info`, `warning` or `error`.
        log_format: `text` or `json`.
        tls_cert: PEM file of the server's certificate chain; None speaks plain text.
        tls_key: PEM file of its private key.
        tls_client_ca: PEM file of the authorities of clients' certificates, which clients then must have.
        tokens_file: TOML file of the bearer tokens that calls then must have, see `imagekin.serving.transport.access`.
        otlp_endpoint: `http://HOST:PORT` of the collector that gets a span of every call; None for none.

    Raises:
        InvalidArgumentError: a setting is out of range, or the address is open to others without protection.
    """

    address: str = "127.0.0.1:50051"
    models: tuple[tuple[str, Path], ...] = ()
    data_dir: Path | None = None
    store: str | None = None
    read_only: bool = False
    allow_insecure: bool = False
    device: str = "auto"
    index_device: str = "auto"
    limits: Limits = field(default_factory=Limits)
    decode_workers: int = 0
    encoder_sessions: int = 0
    encoder_threads: int = 0
    encoder_batch: int = 0
    cuda_graphs: bool = False
    search_workers: int = 0
    max_search_batch: int = 64
    drain_seconds: float = 30.0
    port_file: Path | None = None
    metrics_address: str | None = None
    metrics_port_file: Path | None = None
    log_level: str = "info"
    log_format: str = "text"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens_file: Path | None = None
    otlp_endpoint: str | None = None

    def __post_init__(self) -> None:
        self._check_protection()
        if not self.models and self.data_dir is None and self.store is None:
            raise InvalidArgumentError("nothing to serve: give a model, a data folder or both", field="models")
        if self.store is not None:
            parse_store(self.store)
            if self.data_dir is not None:
                raise InvalidArgumentError("collections are in a data folder or in a store, not both", field="store")
        names = [name for name, _ in self.models]
        for name in names:
            if not _MODEL_NAME.match(name):
                raise InvalidArgumentError(f"{name[:64]!r} is no model name: letters, digits, . _ -", field="models")
        if len(set(names)) != len(names):
            raise InvalidArgumentError("two models have the same name", field="models")
        for name in ("device", "index_device"):
            if getattr(self, name) not in ("auto", "cpu", "cuda"):
                raise InvalidArgumentError(f"{name} must be auto, cpu or cuda", field=name)
        for name in (
            "decode_workers",
            "encoder_sessions",
            "encoder_threads",
            "encoder_batch",
            "search_workers",
            "drain_seconds",
        ):
            if not getattr(self, name) >= 0:
                raise InvalidArgumentError(f"{name} must not be negative", field=name)
        if self.max_search_batch < 1:
            raise InvalidArgumentError("max_search_batch must be at least 1", field="max_search_batch")
        for name, known in (("log_level", LEVELS), ("log_format", FORMATS)):
            if getattr(self, name) not in known:
                raise InvalidArgumentError(f"{name} must be one of {', '.join(known)}", field=name)
        if self.otlp_endpoint is not None:
            check_endpoint(self.otlp_endpoint)

    def _check_protection(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidArgumentError("TLS needs both a certificate and its key", field="tls_cert")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InvalidArgumentError("clients' certificates need TLS: give --tls-cert, too", field="tls_client_ca")
        for name, address in (("address", self.address), ("metrics_address", self.metrics_address)):
            if address is None:
                continue
            host, _ = split_address(address, name)
            if not (self.allow_insecure or self.tls_cert or self.tokens_file or is_loopback(host)):
                raise InvalidArgumentError(
                    f"{address} can be reached from other machines, without encryption or a token: listen on "
                    "127.0.0.1, protect it with --tls-cert or --tokens-file, or allow it with --allow-insecure",
                    field=name,
                )


def parse_model(text: str) -> tuple[str, Path]:
    """Return name and path of `NAME=PATH` or `PATH`, which is named after its file.

    Raises:
        InvalidArgumentError: it is empty.
    """
    name, equals, path = text.partition("=")
    if not equals:
        name, path = Path(text).stem, text
    if not name or not path:
        raise InvalidArgumentError("a model is given as PATH or NAME=PATH", field="models")
    return name, Path(path)


def split_address(address: str, field: str = "address") -> tuple[str, int]:
    """Return host and port of `HOST:PORT`.

    Raises:
        InvalidArgumentError: it is not of that form.
    """
    match = _ADDRESS.match(address)
    if match is None or int(match["port"]) > 65_535:
        raise InvalidArgumentError(f"{address[:200]!r} is no address: give HOST:PORT", field=field)
    return match["six"] or match["host"], int(match["port"])


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
