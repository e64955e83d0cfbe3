"""Authorise calls: the scope that each RPC needs, and the tokens that grant scopes.

A token's SHA-256 is compared with all entries in constant time, so that the time of an answer reveals neither the
token's length nor a common prefix.
"""

import enum
import fnmatch
import hashlib
import hmac
import re
import threading
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagekin.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from imagekin.serving.transport import subjects
from imagekin.serving.transport.rates import Rate


class Scope(enum.IntEnum):
    """Scope of a token; each includes those before it."""

    READ = 1
    WRITE = 2
    ADMIN = 3


# The scope that each RPC needs; None is open to everyone. An RPC that is not listed needs ADMIN.
SCOPES: Mapping[str, Scope | None] = {
    "/imagekin.v1.Embedder/Embed": Scope.READ,
    "/imagekin.v1.Embedder/EmbedStream": Scope.READ,
    "/imagekin.v1.Embedder/ListModels": Scope.READ,
    "/imagekin.v1.Searcher/Search": Scope.READ,
    "/imagekin.v1.Searcher/Classify": Scope.READ,
    "/imagekin.v1.Searcher/Locate": Scope.READ,
    "/imagekin.v1.Collections/ListCollections": Scope.READ,
    "/imagekin.v1.Collections/DescribeCollection": Scope.READ,
    "/imagekin.v1.Collections/Get": Scope.READ,
    "/imagekin.v1.Collections/GetThumbnails": Scope.READ,
    "/imagekin.v1.Collections/Scroll": Scope.READ,
    "/imagekin.v1.Collections/Count": Scope.READ,
    "/imagekin.v1.Collections/Facet": Scope.READ,
    "/imagekin.v1.Collections/GetMap": Scope.READ,
    "/imagekin.v1.Collections/GetMapKeys": Scope.READ,
    "/imagekin.v1.Collections/CreateCollection": Scope.WRITE,
    "/imagekin.v1.Collections/Upsert": Scope.WRITE,
    "/imagekin.v1.Collections/UpsertStream": Scope.WRITE,
    "/imagekin.v1.Collections/Update": Scope.WRITE,
    "/imagekin.v1.Collections/Delete": Scope.WRITE,
    "/imagekin.v1.Collections/DropCollection": Scope.ADMIN,
    "/imagekin.v1.Collections/Snapshot": Scope.ADMIN,
    "/imagekin.v1.Admin/Reload": Scope.ADMIN,
    "/inference.GRPCInferenceService/ServerLive": None,
    "/inference.GRPCInferenceService/ServerReady": None,
    "/inference.GRPCInferenceService/ModelReady": Scope.READ,
    "/inference.GRPCInferenceService/ServerMetadata": Scope.READ,
    "/inference.GRPCInferenceService/ModelMetadata": Scope.READ,
    "/inference.GRPCInferenceService/ModelInfer": Scope.READ,
    "/grpc.health.v1.Health/Check": None,
    "/grpc.health.v1.Health/List": None,
    "/grpc.health.v1.Health/Watch": None,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Scope.READ,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Scope.READ,
}

_BEARER = "bearer "
_PLAIN = re.compile(r"[!-~]{20,512}\Z")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")
_KEYS = frozenset({"name", "scope", "token", "sha256"})
_MORE_KEYS = frozenset({"collections", "calls_per_second"})
RELOAD = "/imagekin.v1.Admin/Reload"


@dataclass(frozen=True, slots=True)
class Token:
    """An entry of the tokens file.

    Attributes:
        name: name of its owner.
        scope: the scope that it grants.
        digest: SHA-256 of the token.
        collections: the collections that it is for, perhaps with `*` for any letters; empty is all.
        calls_per_second: how many calls it may make; 0 is any number.
    """

    name: str
    scope: Scope
    digest: bytes
    collections: tuple[str, ...] = ()
    calls_per_second: float = 0.0

    def allows(self, collection: str) -> bool:
        """Return whether the token is for a collection."""
        return not self.collections or any(fnmatch.fnmatchcase(collection, name) for name in self.collections)

    def check_request(self, request: Any, method: str) -> None:
        """Check that a request is about collections that the token is for.

        Raises:
            PermissionDeniedError: it names another one, or means all.
        """
        if not self.collections:
            return
        named = subjects.collections(request)
        if not named and method == RELOAD:
            raise PermissionDeniedError("the token is for certain collections: name those to reload")
        for name in named:
            if not self.allows(name):
                raise PermissionDeniedError(f"the token is not for the collection {name[:64]!r}", field="collection")


class Guard:
    """Authorise calls by the tokens of a file. Thread-safe.

    Args:
        path: the tokens file.

    Raises:
        NotFoundError: it cannot be read.
        InvalidArgumentError: it is no tokens file, or others may read it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._tokens = read_tokens(path)
        self._rates: dict[str, tuple[float, Rate]] = {}

    def reload(self) -> None:
        """Reload the file; the tokens stay as they were when it cannot be read."""
        tokens = read_tokens(self._path)
        with self._lock:
            self._tokens = tokens

    def check(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Token | None:
        """Check that a call is authorised, and return its token; None where no token is needed.

        Args:
            method: `/package.Service/Method`.
            metadata: the call's metadata.

        Raises:
            UnauthenticatedError: no token, or an unknown one.
            PermissionDeniedError: the token's scope is too small.
        """
        needed = SCOPES.get(method, Scope.ADMIN)
        if needed is None:
            return None
        given = next((value for key, value in metadata if key == "authorization"), "")
        token = self.check_header(given if isinstance(given, str) else "", needed)
        if token.calls_per_second:
            self._rate(token).take()
        return token

    def check_header(self, header: str, needed: Scope) -> Token:
        """Check that the value of an authorization header grants a scope, and return its token; raise as `check`."""
        if header[: len(_BEARER)].lower() != _BEARER:
            raise UnauthenticatedError(
                "no token: send it as `authorization: Bearer TOKEN`; the command takes it from IMAGEKIN_TOKEN"
            )
        token = self._find(header[len(_BEARER) :].strip())
        if token is None:
            raise UnauthenticatedError("unknown token: ask the server's operator for a new one")
        if token.scope < needed:
            raise PermissionDeniedError(
                f"the token has the scope {token.scope.name.lower()}, this call needs {needed.name.lower()}"
            )
        return token

    def _rate(self, token: Token) -> Rate:
        """Return the rate of a token, a new one where the file says another number than before."""
        known = self._rates.get(token.name)
        if known is None or known[0] != token.calls_per_second:
            known = self._rates[token.name] = (token.calls_per_second, Rate(token.calls_per_second))
        return known[1]

    def _find(self, given: str) -> Token | None:
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
        found: Token | None = None
        with self._lock:
            tokens = self._tokens
        for token in tokens:
            # No early exit: the time must not depend on which entry matches.
            if hmac.compare_digest(digest, token.digest):
                found = token
        return found


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Read a tokens file: TOML with a `[[token]]` table each, of name, scope, and token or sha256 (in hex).

    Raises:
        NotFoundError: it cannot be read.
        InvalidArgumentError: it is no tokens file, or others may read it.
    """
    try:
        check_private(path, "tokens_file")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror}", field="tokens_file") from None
    except ValueError:
        raise _wrong(path, "no TOML") from None
    try:
        document = tomllib.loads(text)
    except ValueError as error:
        # The parser's message gives a position and never quotes the file.
        raise _wrong(path, f"no TOML: {error}") from None
    entries = document.pop("token", None)
    if document or not isinstance(entries, list) or not entries:
        raise _wrong(path, "it must hold [[token]] tables and nothing else")
    tokens = tuple(_token(path, position, entry) for position, entry in enumerate(entries, 1))
    if len({token.name for token in tokens}) < len(tokens):
        raise _wrong(path, "two tokens have the same name")
    if len({token.digest for token in tokens}) < len(tokens):
        raise _wrong(path, "two entries are the same token")
    return tokens


def check_private(path: Path, field: str) -> None:
    """Check that only its owner and group can read a secret's file.

    Raises:
        OSError: it is not there.
        InvalidArgumentError: others may read it, or its group may write it.
    """
    if path.stat().st_mode & 0o027:
        raise InvalidArgumentError(f"{path} may be read or changed by others: run chmod 600 {path}", field=field)


def _token(path: Path, position: int, entry: Any) -> Token:
    where = f"token {position}"
    if not isinstance(entry, dict) or set(entry) - _KEYS - _MORE_KEYS:
        raise _wrong(
            path,
            f"{where} has other keys than the texts name, scope, token or sha256, and collections, calls_per_second",
        )
    if not all(isinstance(entry[key], str) for key in _KEYS & set(entry)):
        raise _wrong(path, f"{where} must have the texts name, scope, and token or sha256")
    name, scope = entry.get("name", ""), entry.get("scope", "")
    if not name:
        raise _wrong(path, f"{where} has no name")
    if scope.upper() not in Scope.__members__:
        raise _wrong(path, f"{where} ({name}): scope must be read, write or admin")
    if ("token" in entry) == ("sha256" in entry):
        raise _wrong(path, f"{where} ({name}): give exactly one of token and sha256")
    if "sha256" in entry:
        if not _SHA256.match(entry["sha256"]):
            raise _wrong(path, f"{where} ({name}): sha256 must be 64 hexadecimal digits")
        digest = bytes.fromhex(entry["sha256"])
    else:
        if not _PLAIN.match(entry["token"]):
            raise _wrong(path, f"{where} ({name}): a token has 20 to 512 printable ASCII characters and no blank")
        digest = hashlib.sha256(entry["token"].encode()).digest()
    collections, calls = entry.get("collections", []), entry.get("calls_per_second", 0)
    if not isinstance(collections, list) or not all(isinstance(one, str) and one for one in collections):
        raise _wrong(path, f"{where} ({name}): collections must be a list of names")
    if "collections" in entry and not collections:
        raise _wrong(path, f"{where} ({name}): collections is empty: leave it out for all")
    if isinstance(calls, bool) or not isinstance(calls, int | float) or not 0 <= calls < 1e9:
        raise _wrong(path, f"{where} ({name}): calls_per_second must be a number, 0 for any")
    return Token(name, Scope[scope.upper()], digest, tuple(collections), float(calls))


def _wrong(path: Path, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{path}: {what}", field="tokens_file")
