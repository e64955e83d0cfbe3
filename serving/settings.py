"""Settings of a server: address, models, data and limits, checked before anything is opened."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from imagekin.addresses import is_loopback, socket_path, split_address
from imagekin.errors import InvalidArgumentError
from imagekin.index.milvus.connection import parse_store
from imagekin.machine import Device
from imagekin.serving.observability.logs import LogFormat, LogLevel
from imagekin.serving.observability.tracing import check_endpoint
from imagekin.settings import check, option

MEBIBYTE = 2**20
# Titles of the groups in `imagekin serve --help`; the options that matter most stand above the groups.
PROTECTION = "Encryption and tokens"
PERFORMANCE = "Threads and batches"
LIMITS = "Limits"
HTTP = "HTTP"
OBSERVABILITY = "Logs, metrics and traces"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_ROOT_PATH = re.compile(r"(?:/[A-Za-z0-9_.~-]+)*\Z")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(?::[0-9]{1,5})?\Z|https?://\[[0-9a-f:]+\](?::[0-9]{1,5})?\Z")


def parse_model(text: str) -> tuple[str, Path]:
    """Split `NAME=PATH` into name and path; a `PATH` alone is named after its file.

    Raises:
        InvalidArgumentError: it is empty.
    """
    name, equals, path = text.partition("=")
    if not equals:
        name, path = Path(text).stem, text
    if not name or not path:
        raise InvalidArgumentError("a model is given as PATH or NAME=PATH", field="models")
    return name, Path(path)


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings on the cost of one request, and of all together; those without a flag are for tests only.

    Raises:
        InvalidArgumentError: a limit is not positive, or one batch could not fit into the queue.
    """

    max_image_bytes: int = option(20 * MEBIBYTE, "Bytes of one image file.", panel=LIMITS, least=1)
    max_pixels: int = option(
        64_000_000, "Pixels of one image, read from its header before it is decoded.", panel=LIMITS, least=1
    )
    max_batch_items: int = option(256, "Images, queries or items of one request.", panel=LIMITS, least=1)
    max_k: int = option(10_000, "Neighbours per query.", flag="", least=1)
    max_keys: int = option(10_000, "Keys of one Get or Delete, items of one Scroll page.", flag="", least=1)
    max_neighbours: int = option(100_000, "Neighbours of one answer, over all its queries.", flag="", least=1)
    max_message_bytes: int = option(
        32 * MEBIBYTE, "Bytes of one message or answer; gRPC itself refuses one of a quarter more.", flag="", least=1
    )
    max_held_bytes: int = option(512 * MEBIBYTE, "Bytes of all requests in flight, decompressed.", flag="", least=1)
    max_queue: int = option(2_048, "Images waiting or being embedded, per model.", flag="", least=1)
    max_queue_bytes: int = option(256 * MEBIBYTE, "Bytes of those images.", flag="", least=1)
    max_queued_searches: int = option(4_096, "Queries waiting, per collection.", flag="", least=1)
    max_concurrent_streams: int = option(256, "Calls at one time on one connection.", flag="", least=1)
    max_concurrent_calls: int = option(2_048, "Calls at one time on all connections.", flag="", least=1)

    def __post_init__(self) -> None:
        check(self)
        if self.max_queue < self.max_batch_items:
            raise InvalidArgumentError("max_queue must be at least max_batch_items", field="max_queue")
        if self.max_queue_bytes < self.max_message_bytes:
            raise InvalidArgumentError("max_queue_bytes must be at least max_message_bytes", field="max_queue_bytes")


@dataclass(frozen=True, slots=True)
class Settings:
    """A server's settings.

    Attributes:
        limits: ceilings.

    Raises:
        InvalidArgumentError: a setting is out of range, or the address is open to others without protection.
    """

    models: tuple[tuple[str, Path], ...] = option(
        (),
        "Model artifact; may be repeated, the first is the default.",
        flag="--model",
        short="-m",
        metavar="[NAME=]FILE",
        parse=parse_model,
    )
    data_dir: Path | None = option(
        None, "Folder of the collections; none serves models only.", short="-d", metavar="DIR", exclusive=True
    )
    store: str | None = option(
        None,
        "Collections in Milvus: milvus://HOST:PORT or milvus-lite:///FILE.db.",
        metavar="URL",
        exclusive=True,
    )
    address: str = option(
        "127.0.0.1:50051",
        "Where to listen ([HOST]:PORT for IPv6, or unix:PATH); port 0 takes a free one.",
        short="-a",
        metavar="HOST:PORT",
    )
    http_address: str | None = option(
        None, "Answer HTTP/JSON here, too (HOST:PORT or unix:PATH); port 0 takes a free one.", metavar="HOST:PORT"
    )
    max_connection_age: float = option(
        0.0,
        "Seconds after which a client connects anew, to the server that a balancer chooses then; 0 is never.",
        least=0.0,
    )
    read_only: bool = option(False, "Serve the collections without ever writing.")
    allow_insecure: bool = option(False, "Let other machines connect, without encryption or a token.", panel=PROTECTION)
    device: Device = option("auto", "Where the model runs.")
    index_device: Device = option("auto", "Where collections are searched, row by row.", panel=PERFORMANCE)
    limits: Limits = field(default_factory=Limits)
    decode_workers: int = option(
        0, "Threads per model that decode images; 0 is one per core.", panel=PERFORMANCE, least=0
    )
    encoder_sessions: int = option(
        0, "Inferences at one time, per model; 0 is as `imagekin tune` found.", panel=PERFORMANCE, least=0
    )
    encoder_threads: int = option(
        0, "Threads of one inference; 0 is as `imagekin tune` found.", panel=PERFORMANCE, least=0
    )
    encoder_batch: int = option(
        0, "Images of one inference at most; 0 is as `imagekin tune` found.", panel=PERFORMANCE, least=0
    )
    cuda_graphs: bool = option(False, "On a GPU, record each batch size as a CUDA graph.", panel=PERFORMANCE)
    search_workers: int = option(
        0, "Threads that search and write; 0 is one per core, at least 4.", panel=PERFORMANCE, least=0
    )
    max_search_batch: int = option(64, "Queries of one index search.", flag="", least=1)
    drain_seconds: float = option(30.0, "Time that calls get to finish after SIGTERM.", least=0.0)
    stop_with_parent: bool = option(False, "Stop when standard input ends: for a program that starts its own server.")
    port_file: Path | None = option(None, "Gets the port as text once the server is ready.", metavar="FILE")
    http_port_file: Path | None = option(None, "Gets the port of HTTP as text.", metavar="FILE", panel=HTTP)
    http_root_path: str = option(
        "", "Path below which a proxy serves HTTP, such as /images.", metavar="PATH", panel=HTTP
    )
    http_host: tuple[str, ...] = option(
        (), "Further name that callers may use for a loopback address; may be repeated.", metavar="NAME", panel=HTTP
    )
    cors_origin: tuple[str, ...] = option(
        (),
        "Origin of web pages that may call (https://HOST, or * for all); may be repeated.",
        metavar="URL",
        panel=HTTP,
    )
    metrics_address: str | None = option(
        None, "Serve /metrics for Prometheus here.", metavar="HOST:PORT", panel=OBSERVABILITY
    )
    metrics_port_file: Path | None = option(
        None, "Gets the port of /metrics as text.", metavar="FILE", panel=OBSERVABILITY
    )
    log_level: LogLevel = option("info", "debug has one line per call.", panel=OBSERVABILITY)
    log_format: LogFormat = option("text", "Form of the log on standard error.", panel=OBSERVABILITY)
    tls_cert: Path | None = option(
        None, "Encrypt, with this certificate chain (PEM).", metavar="FILE", panel=PROTECTION
    )
    tls_key: Path | None = option(None, "The certificate's private key (PEM).", metavar="FILE", panel=PROTECTION)
    tls_client_ca: Path | None = option(
        None, "Let in only clients with a certificate of these (PEM).", metavar="FILE", panel=PROTECTION
    )
    tokens_file: Path | None = option(
        None, "Let in only calls with a token of this file (TOML).", metavar="FILE", panel=PROTECTION
    )
    audit_log: Path | None = option(
        None, "Write who asked for what to this file, a JSON object a line.", metavar="FILE", panel=OBSERVABILITY
    )
    otlp_endpoint: str | None = option(
        None,
        "Send a span of every call to this OTLP collector (http://HOST:PORT).",
        metavar="URL",
        panel=OBSERVABILITY,
    )

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
        check(self)
        self._check_http()
        if self.otlp_endpoint is not None:
            check_endpoint(self.otlp_endpoint)

    def _check_http(self) -> None:
        if not _ROOT_PATH.match(self.http_root_path):
            raise InvalidArgumentError(
                "http_root_path is none: give /NAME, without / at its end", field="http_root_path"
            )
        for origin in self.cors_origin:
            if origin != "*" and not _ORIGIN.match(origin):
                raise InvalidArgumentError(
                    f"{origin[:200]!r} is no origin: give https://HOST, https://HOST:PORT or *", field="cors_origin"
                )

    def _check_protection(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidArgumentError("TLS needs both a certificate and its key", field="tls_cert")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InvalidArgumentError("clients' certificates need TLS: give --tls-cert, too", field="tls_client_ca")
        for name in ("address", "http_address", "metrics_address"):
            address: str | None = getattr(self, name)
            if address is None or (name != "metrics_address" and socket_path(address) is not None):
                continue  # the permissions of its folder protect a Unix socket
            host, _ = split_address(address, name)
            if not (self.allow_insecure or self.tls_cert or self.tokens_file or is_loopback(host)):
                raise InvalidArgumentError(
                    f"{address} can be reached from other machines, without encryption or a token: listen on "
                    "127.0.0.1, protect it with --tls-cert or --tokens-file, or allow it with --allow-insecure",
                    field=name,
                )
