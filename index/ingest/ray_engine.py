"""Read, decode and embed the images of a source on the workers of a Ray cluster, by Ray Data.

    list the source (here) ─▶ read, hash, skip stored items, decode, embed (workers) ─▶ records of vectors (here)

The result is records of vectors in the source's order, for `imagekin.index.ingest.pipeline.index_images`: the same
pipeline stores them, wherever they were embedded. Images are not transferred: each worker reads the images that it
embeds. If a worker is lost, Ray starts another one and repeats its chunk; results sent before are not sent twice.
"""

import json
import logging
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray._private.node import Node
from ray.exceptions import RayActorError, RayError, RayTaskError

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import ImageError, ImagekinError, InternalError, InvalidArgumentError, UnavailableError
from imagekin.index.ingest.embed_stage import Data, EmbeddingModel, EmbedSettings, LoadBoth, embedded
from imagekin.index.ingest.intake import Conflict, content_hash
from imagekin.index.ingest.ray_known_items import Digests, is_known
from imagekin.machine import Device, cores
from imagekin.sources.ignored import Ignored, Kind
from imagekin.sources.pieces import ImageFile, Piece, ignored_in, pieces_of
from imagekin.sources.records import Record, Source, SourceError
from imagekin.sources.values import payload_text
from imagekin.types import Vector

OpenModel: TypeAlias = Callable[[], EmbeddingModel]

# Image files of one chunk: enough that its overhead is negligible, few enough that a lost one is quickly repeated.
_FILES_IN_CHUNK = 256
# Size of a block of results. Ray Data's default of 128 MiB would hold back the results of a whole archive and more.
_BLOCK_BYTES = 256 * 1024
# The object store of a local cluster holds the listing of a source and vectors, but no images; it spills to disk.
_LOCAL_STORE_BYTES = 256 * 2**20
_CONNECT_SECONDS = 10.0
# Attempts to start a local cluster: a port that Ray has chosen may be taken by another process before Ray uses it.
_STARTS = 3
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("vector", pa.binary()),  # float32; null for an error, empty for an item that is stored already
        ("label", pa.string()),
        ("payload", pa.string()),
        ("content_hash", pa.binary()),
        ("thumbnail", pa.binary()),
        ("error", pa.string()),
        ("incomplete", pa.bool_()),
        ("ignored", pa.string()),  # kinds and numbers of ignored files as JSON, in a row of its own without a record
    ]
)


@dataclass(frozen=True, slots=True)
class RayWorkers:
    """The worker processes that embed.

    Attributes:
        count: number of workers; None for one per GPU of the cluster or, without GPUs, per core.
        threads: processors of each worker, and threads that decode.
        device: device that the model runs on; a worker does not share its GPU.
    """

    count: int | None = None
    threads: int = 1
    device: Device = "auto"


@dataclass(frozen=True, slots=True)
class ArtifactBytes:
    """The bytes of a model artifact, to be sent to workers that do not have the file.

    Attributes:
        data: the file's bytes.
        device: device to run on.
        threads: CPU threads of an inference.
    """

    data: bytes
    device: Device
    threads: int

    def __call__(self) -> Encoder:
        """Open the model."""
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(self.data)
            return Encoder.open(path, device=self.device, threads=self.threads)


@contextmanager
def connected(address: str | None, workers: RayWorkers = RayWorkers()) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine, and disconnect or stop it at the end of the block.

    A connection that the process already has is used, and kept.

    Args:
        address: `HOST:PORT` or `ray://HOST:PORT` of the head node, `auto`, or `local` to start a cluster; None for
            the environment variable `RAY_ADDRESS` or, if it is not set, `local`.
        workers: the workers for which a local cluster has processors.

    Raises:
        UnavailableError: the cluster cannot be reached or started.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are also raised, and reported in one line
    started: dict[str, Any] = {}
    if address == "local":
        count = workers.count or max(1, cores() // workers.threads)
        started = {
            "num_cpus": count * workers.threads,
            "include_dashboard": False,
            "object_store_memory": _LOCAL_STORE_BYTES,
        }
    starts = _STARTS if started else 1
    for start in range(1, starts + 1):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **started)
            break
        except Exception as error:  # Ray raises a plain Exception when a process of the cluster fails to start
            _kill_started_processes(error)
            if start == starts:
                said = f"no Ray cluster {'started' if started else 'answers'} at {address} ({_first_line(error)})"
                raise UnavailableError(said, field="ray_address") from None
    try:
        yield
    finally:
        ray.shutdown()


class RayRecords:
    """The records of a source, embedded by the workers of the cluster that this process is connected to.

    Args:
        source: the source; local paths must be valid on every machine of the cluster.
        open_model: opens the model, once in every worker; None for a source of vectors.
        known: the items stored already, see `imagekin.index.ingest.ray_known_items`.
        on_conflict: the same value as for `known_items`.
        workers: the worker processes.
        batch_size: images that are embedded at once.
        limits: limits of image files.
        load_both: loads a file's pixels together with its thumbnail, in the workers; None makes no thumbnails.
    """

    def __init__(
        self,
        source: Source,
        open_model: OpenModel | None,
        known: Digests,
        *,
        on_conflict: Conflict = "replace",
        workers: RayWorkers = RayWorkers(),
        batch_size: int = 64,
        limits: DecodeLimits | None = None,
        load_both: LoadBoth | None = None,
    ) -> None:
        self._source = source
        self._open_model = open_model
        self._known = known
        self._workers = workers
        self._job = _Job(on_conflict, EmbedSettings(batch_size, workers.threads, limits or DecodeLimits(), load_both))
        self._ignored = Ignored()

    @property
    def ignored(self) -> Ignored:
        """The files that the last iteration ignored, by kind and reason."""
        return self._ignored

    def __iter__(self) -> Iterator[Record]:
        """Yield the records: vectors; empty bytes for items that are stored already; errors.

        Raises:
            ImagekinError: a worker failed.
        """
        self._ignored = Ignored()
        try:
            # In Ray's object store, which spills to disk, for as long as a restarted worker may need them.
            chunks = [ray.put(chunk) for chunk in _chunks(pieces_of(self._source))]
            shared = (ray.put(self._open_model), ray.put(self._known))
            if not chunks:
                return
            with closing(self._tables(chunks, shared)) as tables:
                for table in tables:
                    yield from self._records(table)
        except RayError as error:
            raise _translated(error) from None
        finally:
            self._ignored.update(self._source.ignored)

    def _tables(self, chunks: list[Any], shared: tuple[Any, Any]) -> Generator[Any, None, None]:
        count, gpus = self._placement()
        rows = [{"chunk": number} for number in range(len(chunks))]
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        data.context.enable_progress_bars = False
        data.context.target_max_block_size = _BLOCK_BYTES
        data.context.execution_options.preserve_order = True  # of two images with one key, the first is stored
        done = data.map_batches(
            _Worker,
            fn_constructor_args=(self._job, chunks, *shared),
            compute=ray.data.ActorPoolStrategy(size=min(count, len(chunks))),
            batch_size=1,
            num_cpus=self._workers.threads,
            num_gpus=gpus,
        )
        yield from done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)

    def _placement(self) -> tuple[int, int]:
        """Return the number of workers, and the number of GPUs of each."""
        has = ray.cluster_resources()
        gpus = int(self._workers.device != "cpu" and self._open_model is not None and has.get("GPU", 0) >= 1)
        if self._workers.device == "cuda" and not gpus:
            raise InvalidArgumentError("the Ray cluster has no GPU: use --device cpu", field="device")
        fit = has.get("GPU", 0) if gpus else has.get("CPU", 1) // self._workers.threads
        return self._workers.count or max(1, int(fit)), gpus

    def _records(self, table: Any) -> Iterator[Record]:
        for row in table.to_pylist():
            if row["ignored"]:
                self._ignored.update(Ignored((Kind(*kind), count) for kind, count in json.loads(row["ignored"])))
                continue
            data: bytes | Vector | ImagekinError
            if row["error"] is not None:
                data = (SourceError if row["incomplete"] else ImageError)(row["error"])
            else:
                data = np.frombuffer(row["vector"], np.float32) if row["vector"] else b""
            payload = json.loads(row["payload"]) if row["payload"] else None
            yield Record(
                row["key"], data, row["label"], payload, row["content_hash"], thumbnail=row["thumbnail"] or None
            )


@dataclass(frozen=True, slots=True)
class _Job:
    """The settings that are sent to a worker, apart from the objects in Ray's object store."""

    on_conflict: Conflict
    pace: EmbedSettings


class _Worker:
    """A reader and embedder of chunks, in a process of its own."""

    def __init__(self, job: _Job, chunks: list[Any], open_model: Any, known: Any) -> None:
        self._job = job
        self._chunks = chunks
        opened = ray.get(open_model)
        self._model: EmbeddingModel | None = opened() if opened is not None else None
        self._known: Digests = ray.get(known)

    def __call__(self, batch: dict[str, Any]) -> Iterator[Any]:
        """Yield tables with the results of the records of chunks; deterministic, so that a chunk can be repeated."""
        for number in batch["chunk"]:
            pieces: list[Piece] = ray.get(self._chunks[number])
            for done in embedded(self._model, self._files(pieces), self._job.pace):
                yield pa.Table.from_pylist([_row(*one) for one in done], _SCHEMA)
            ignored = [kind for piece in pieces for kind in ignored_in(piece) or ()]
            if ignored:
                yield pa.Table.from_pylist([{"ignored": json.dumps(ignored)}], _SCHEMA)

    def _files(self, pieces: Iterable[Piece]) -> Iterator[tuple[Record, Data]]:
        """Yield records without their data, and the data separately; empty for items that are stored already."""
        for piece in pieces:
            for record in piece:
                data = record.data
                if isinstance(data, ImagekinError):
                    yield record, data
                    continue
                digest = content_hash(record)
                known = is_known(self._known, record.key, digest, self._job.on_conflict)
                named = Record(record.key, b"", record.label, record.payload, digest)
                yield named, np.empty(0, np.float32) if known else data


def _row(record: Record, data: Vector | ImagekinError, thumbnail: bytes | None) -> dict[str, object]:
    row: dict[str, object] = {
        "key": record.key,
        "label": record.label,
        "payload": payload_text(record.payload),
        "content_hash": record.content_hash,
    }
    if isinstance(data, ImagekinError):
        return {**row, "error": str(data), "incomplete": isinstance(data, SourceError)}
    return {**row, "vector": data.astype(np.float32, copy=False).tobytes(), "thumbnail": thumbnail}


def _chunks(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Yield the pieces of each chunk of work: many files, or one archive or row group."""
    files: list[Piece] = []
    for piece in pieces:
        small = isinstance(piece, (ImageFile, tuple))
        if small:
            files.append(piece)
        if files and (not small or len(files) == _FILES_IN_CHUNK):
            yield files
            files = []
        if not small:
            yield [piece]
    if files:
        yield files


def _kill_started_processes(error: Exception) -> None:
    """Kill the processes of a cluster that failed to start; Ray would leave them running until this process ends."""
    for frame, _ in walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            node.kill_all_processes(check_alive=False, allow_graceful=False)


def _check_reachable(address: str) -> None:
    """Raise UnavailableError when nothing listens at an address, because Ray itself would retry for a long time."""
    if address in ("local", "auto"):
        return
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise InvalidArgumentError(f"{address!r} is no HOST:PORT of a Ray cluster", field="ray_address")
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnavailableError(f"no Ray cluster answers at {address} ({reason})", field="ray_address") from None


def _translated(error: RayError) -> ImagekinError:
    """Return an error's cause in one line; an error of this project that a worker raised is returned unchanged."""
    cause: BaseException = error
    while isinstance(cause, RayError) and not isinstance(cause, RayActorError):
        within = cause.cause if isinstance(cause, RayTaskError) else cause.__cause__
        if within is None:
            break
        cause = within
    if isinstance(cause, RayActorError):
        return UnavailableError("the Ray cluster lost its workers; run the same again when it is well")
    if isinstance(cause, ImagekinError) and not isinstance(cause, RayError):
        return type(cause)(_first_line(cause))  # without the lines that Ray Data adds
    return InternalError(f"a Ray worker failed: {type(cause).__name__}: {_first_line(cause)}")


def _first_line(error: BaseException) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)
