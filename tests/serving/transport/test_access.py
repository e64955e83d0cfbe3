"""Tokens: every RPC has a scope, every scope is kept to, and a tokens file that is wrong says so."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from imagekin import Client
from imagekin.errors import (
    ImagekinError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from imagekin.serving.server import SERVICES
from imagekin.serving.services.reflection import REFLECTION
from imagekin.serving.settings import Settings
from imagekin.serving.transport.access import SCOPES, Guard, Scope, read_tokens
from imagekin.v1 import embedder_pb2
from imagekin.v1.common_pb2 import Image
from tests.serving.running import Running, code, details, png, running

READER, WRITER, ADMIN = ("reader-0123456789abcdef", "writer-0123456789abcdef", "admin-0123456789abcdef")
HELD = {READER: Scope.READ, WRITER: Scope.WRITE, ADMIN: Scope.ADMIN}


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tokens, one of them kept as its hash only."""
    hashed = hashlib.sha256(WRITER.encode()).hexdigest()
    return write(
        tmp_path_factory.mktemp("tokens") / "tokens.toml",
        f'[[token]]\nname = "app"\nscope = "read"\ntoken = "{READER}"\n'
        f'[[token]]\nname = "indexer"\nscope = "write"\nsha256 = "{hashed}"\n'
        f'[[token]]\nname = "operator"\nscope = "admin"\ntoken = "{ADMIN}"\n',
    )


@pytest.fixture(scope="module")
def guarded(model_path: Path, tokens_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that asks for tokens."""
    models = (("tiny", model_path),)
    data = tmp_path_factory.mktemp("data")
    with running(Settings(address="127.0.0.1:0", models=models, data_dir=data, tokens_file=tokens_file)) as server:
        yield server


def every_method() -> list[str]:
    """Return every RPC of every service, by the descriptors that the server's reflection shows."""
    pool = descriptor_pool.Default()
    names = (*SERVICES, "grpc.health.v1.Health", *REFLECTION)
    return [f"/{name}/{method.name}" for name in names for method in pool.FindServiceByName(name).methods]


def test_every_rpc_of_every_service_is_in_the_table_and_nothing_else() -> None:
    assert set(SCOPES) == set(every_method())


def test_only_probes_are_open() -> None:
    opened = {method for method, scope in SCOPES.items() if scope is None}
    probes = {"/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady"}
    assert opened == {method for method in SCOPES if method.startswith("/grpc.health.")} | probes


def test_a_method_that_the_table_has_not_needs_the_admin_scope(tokens_file: Path) -> None:
    guard = Guard(tokens_file)
    with pytest.raises(PermissionDeniedError):
        guard.check("/imagekin.v1.New/New", [("authorization", f"Bearer {WRITER}")])
    guard.check("/imagekin.v1.New/New", [("authorization", f"bearer {ADMIN}")])


@pytest.mark.parametrize("method", [method for method in every_method() if "Watch" not in method])
@pytest.mark.parametrize("token", [None, "wrong-0123456789abcdef", *HELD])
def test_each_rpc_is_let_in_or_refused_by_its_scope(guarded: Running, method: str, token: str | None) -> None:
    needed = SCOPES[method]
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    # An invalid request, so that whoever is let in does no harm; as a stream, which carries any method.
    call: Any = guarded.channel.stream_stream(method)
    answers = call(iter([b"\xff"]), metadata=metadata, timeout=20)
    with contextlib.suppress(grpc.RpcError):
        list(answers)
    got = answers.code()
    if needed is None or (token in HELD and HELD[token] >= needed):
        assert got not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    elif token in HELD:
        assert got == grpc.StatusCode.PERMISSION_DENIED
    else:
        assert got == grpc.StatusCode.UNAUTHENTICATED


def test_the_client_sends_its_token(guarded: Running) -> None:
    address = f"127.0.0.1:{guarded.server.port}"
    with Client(address, token=READER) as client:
        assert client.embed([png(1)]).shape == (1, 16)
        with pytest.raises(PermissionDeniedError, match="needs write"):
            client.create_collection("shop")
    with Client(address, token=WRITER) as client:
        client.create_collection("shop")
        with pytest.raises(PermissionDeniedError, match="needs admin"):
            client.drop_collection("shop")
    with Client(address) as client, pytest.raises(UnauthenticatedError, match="Bearer"):
        client.embed([png(1)])


def test_a_refusal_has_a_status_with_details_and_reads_no_request(guarded: Running) -> None:
    # Larger than any message that is let in: to read it would be RESOURCE_EXHAUSTED.
    large = embedder_pb2.EmbedRequest(images=[Image(data=b"x" * (129 * 2**20))])
    with pytest.raises(grpc.RpcError) as failed:
        guarded.embedder.Embed(large, timeout=20)
    assert code(failed.value) == grpc.StatusCode.UNAUTHENTICATED
    assert details(failed.value).message.startswith("no token")


def test_health_needs_no_token(guarded: Running) -> None:
    stub = health_pb2_grpc.HealthStub(guarded.channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status == health_pb2.HealthCheckResponse.SERVING


ENTRY = '[[token]]\nname = "a"\nscope = "read"\n'
PLAIN = 'token = "0123456789abcdefghij"\n'
BAD = [
    ("", "[[token]]"),
    ("x = ", "no TOML"),
    ("x = 1\n", "[[token]]"),
    (ENTRY, "exactly one of token and sha256"),
    (ENTRY + PLAIN + f'sha256 = "{"0" * 64}"\n', "exactly one"),
    (ENTRY + 'token = "short"\n', "20 to 512"),
    (ENTRY + 'token = "0123456789 abcdefghij"\n', "20 to 512"),
    (ENTRY + 'sha256 = "xyz"\n', "64 hexadecimal"),
    (ENTRY.replace("read", "root") + PLAIN, "scope must be"),
    (ENTRY.replace('"a"', '""') + PLAIN, "no name"),
    (ENTRY.replace('"a"', "1") + PLAIN, "texts"),
    (ENTRY + PLAIN + "scopes = []\n", "texts"),
    (ENTRY + PLAIN + ENTRY + 'token = "another-0123456789abc"\n', "same name"),
    (ENTRY + PLAIN + ENTRY.replace('"a"', '"b"') + PLAIN, "same token"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_wrong_tokens_file_is_refused_without_showing_a_token(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        read_tokens(write(tmp_path / "tokens.toml", text))
    assert message in str(refused.value)
    assert "0123456789" not in str(refused.value)
    assert refused.value.field == "tokens_file"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o602])
def test_a_tokens_file_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(InvalidArgumentError, match="chmod 600"):
        read_tokens(write(tmp_path / "tokens.toml", ENTRY + PLAIN, mode))
    assert read_tokens(write(tmp_path / "tokens.toml", ENTRY + PLAIN, 0o440))[0].scope == Scope.READ


def test_a_tokens_file_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot be read"):
        read_tokens(tmp_path / "none.toml")


def test_a_reload_replaces_the_tokens_and_a_wrong_file_leaves_them(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens.toml", ENTRY + PLAIN)
    guard = Guard(path)
    old, new = "Bearer 0123456789abcdefghij", "Bearer new-0123456789abcdefghij"
    guard.check_header(old, Scope.READ)
    write(path, "no toml")
    with pytest.raises(ImagekinError):
        guard.reload()
    guard.check_header(old, Scope.READ)
    write(path, ENTRY + 'token = "new-0123456789abcdefghij"\n')
    guard.reload()
    guard.check_header(new, Scope.READ)
    with pytest.raises(UnauthenticatedError):
        guard.check_header(old, Scope.READ)
