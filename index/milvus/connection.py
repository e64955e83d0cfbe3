"""Connect to Milvus or its embedded engine, and translate its errors; only this file imports pymilvus."""

import importlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from imagekin.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    ImagekinError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from imagekin.version import install_command

TOKEN_VARIABLE = "IMAGEKIN_STORE_TOKEN"  # noqa: S105  the variable's name
_SECONDS = 30.0
_NO_COLLECTION = 100
_RATE_LIMIT = 8
# A quota is exhausted (memory, disk), or an operator has stopped writes.
_DENIED = 9
_NO_INPUT = (5, 6, 1100)


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """The address of a store in Milvus.

    Attributes:
        uri: the address for pymilvus.
        database: the database of a server; empty for its default one.
        embedded: True when the engine runs in this process, on a file of its own.
    """

    uri: str
    database: str = ""
    embedded: bool = False


def parse_store(text: str) -> StoreAddress:
    """Parse an address, `milvus://HOST:PORT[/DATABASE]` or `milvus-lite:///PATH.db`.

    Raises:
        InvalidArgumentError: it is neither of these.
    """
    wrong = InvalidArgumentError(
        f"{text[:200]!r} names no store: give milvus://HOST:PORT[/DATABASE] or milvus-lite:///PATH.db", field="store"
    )
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.username is not None or parts.password is not None:
        raise InvalidArgumentError(
            f"a store's address holds no password: keep USER:PASSWORD in {TOKEN_VARIABLE}", field="store"
        )
    if parts.query or parts.fragment:
        raise wrong
    if parts.scheme == "milvus-lite":
        path = Path(parts.path)
        if parts.netloc or not path.is_absolute() or path.suffix != ".db":
            raise wrong
        return StoreAddress(str(path), embedded=True)
    database = parts.path.strip("/")
    if parts.scheme != "milvus" or not parts.hostname or port is None or "/" in database:
        raise wrong
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return StoreAddress(f"http://{host}:{port}", database)


class MilvusConnection:
    """A connection; any thread may call its methods.

    Args:
        address: the address to connect to.

    Raises:
        UnavailableError: Milvus cannot be reached.
        FailedPreconditionError: pymilvus (or milvus-lite) is not installed, or another process has the file open.
    """

    def __init__(self, address: StoreAddress) -> None:
        self.address = address
        # The embedded engine allows one writer at a time; a server coordinates its writers itself.
        self._writing = threading.Lock()
        self._milvus = _imported("pymilvus")
        if address.embedded:
            _imported("milvus_lite")
            if not Path(address.uri).parent.is_dir():
                raise FailedPreconditionError(f"no folder {Path(address.uri).parent}: make it first")
        # Errors are raised, and reported in one line by the caller.
        for name in ("pymilvus", "milvus_lite", *(["grpc._server"] if address.embedded else [])):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with self._translated("connect"):
            self._client = self._milvus.MilvusClient(
                uri=address.uri,
                token=os.environ.get(TOKEN_VARIABLE, ""),
                db_name=address.database,
                timeout=_SECONDS,
            )

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of `pymilvus.MilvusClient` that reads, with a time limit and this project's errors."""
        with self._translated(method):
            return getattr(self._client, method)(*args, timeout=_SECONDS, **options)

    def write(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of `pymilvus.MilvusClient` that writes."""
        if not self.address.embedded:
            return self.call(method, *args, **options)
        with self._writing:
            return self.call(method, *args, **options)

    def make(self, name: str, dim: int, properties: dict[str, str]) -> None:
        """Create an empty collection: columns, an exact index, strong consistency.

        Every column has a value for every item ("" for none), so that the result of a filter's test is never unknown.
        """
        kinds = self._milvus.DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", kinds.VARCHAR, is_primary=True, max_length=1024)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=dim)
        schema.add_field("label", kinds.VARCHAR, max_length=1024)
        schema.add_field("content_hash", kinds.VARCHAR, max_length=64)
        schema.add_field("sequence", kinds.INT64)
        schema.add_field("payload", kinds.VARCHAR, max_length=65_535)
        schema.add_field("facts", kinds.JSON)
        schema.add_field("tags", kinds.ARRAY, element_type=kinds.VARCHAR, max_capacity=4096, max_length=256)
        indexes = self._client.prepare_index_params()
        indexes.add_index("vector", index_type="FLAT", metric_type="IP")
        for column in ("label", "content_hash", "sequence"):
            indexes.add_index(column, index_type="INVERTED")
        self.write(
            "create_collection",
            name,
            schema=schema,
            index_params=indexes,
            consistency_level="Strong",
            properties=properties,
        )

    def close(self) -> None:
        """Close the connection; the embedded engine of this process ends with it."""
        self._client.close()
        if self.address.embedded:
            importlib.import_module("milvus_lite.server_manager").server_manager_instance.release_server(
                self.address.uri
            )

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except ImagekinError:
            raise
        except self._milvus.MilvusException as error:
            raise self._meaning(error, doing) from error
        except (OSError, RuntimeError, ValueError, TypeError) as error:  # other exceptions of pymilvus and gRPC
            code = getattr(error, "code", None)
            if callable(code):
                raise self._unreachable() from error
            raise FailedPreconditionError(f"Milvus cannot {doing}: {_line(str(error))}") from error

    def _meaning(self, error: Any, doing: str) -> ImagekinError:
        code, message = error.code, _line(str(error.message))
        status = getattr(code, "name", "")
        if "not found" in message and "database" in message:
            return NotFoundError(f"there is no database {self.address.database!r} in Milvus: make it there first")
        if code == _NO_COLLECTION:
            return NotFoundError("the collection is no longer in Milvus: somebody dropped it")
        if "Open local milvus failed" in message:
            return FailedPreconditionError(
                "the milvus-lite file cannot be opened: another process has it open, or it is damaged"
            )
        if status == "DEADLINE_EXCEEDED":
            return DeadlineExceededError(f"Milvus did not answer within {_SECONDS:g} s")
        gone = (self._milvus.exceptions.MilvusUnavailableException, self._milvus.exceptions.ConnectError)
        unreachable = "fail connecting" in message.lower() or "connection refused" in message.lower()
        if status or isinstance(error, gone) or unreachable:
            return self._unreachable()
        if code in (_RATE_LIMIT, _DENIED):
            return ResourceExhaustedError(
                f"Milvus takes no more now: {message}", retry_after=1.0 if code == _RATE_LIMIT else None
            )
        if code in _NO_INPUT or isinstance(error, self._milvus.exceptions.ParamError):
            return InvalidArgumentError(f"Milvus cannot {doing}: {message}")
        return FailedPreconditionError(f"Milvus cannot {doing}: {message}")

    def _unreachable(self) -> UnavailableError:
        return UnavailableError(
            "Milvus cannot be reached at "
            f"{self.address.uri.removeprefix('http://')}: start it, or check the address of the store"
        )


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise FailedPreconditionError(
            "a store in Milvus needs milvus-lite: pip install milvus-lite"
            if package == "milvus_lite"
            else f"a store in Milvus needs pymilvus: {install_command('scale')}"
        ) from None


def _line(message: str) -> str:
    return (message.splitlines() or [""])[0][:300]
