"""Check the arguments of a client: address, token, TLS files, limits. Used by both clients."""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

from imagekin.addresses import complete_address
from imagekin.client import calls, conversions, retries
from imagekin.errors import InvalidArgumentError, NotFoundError

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # The client asked for the answer, however large: k and with_vector bound it.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # By default gRPC waits 1 s or more after a failed connection; a retry within that time only repeats its failure.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Notice a dead peer behind a NAT or load balancer, but only while calls are under way.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A new client does not wait because an earlier client's connection failed.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS files in PEM form.

    Attributes:
        ca: certificates to trust; None trusts the system's.
        certificate: the client's own certificate chain, for mutual TLS.
        key: its private key.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


# False: plain text. True: the system's certificates. A path: a PEM file of certificates to trust.
TlsLike: TypeAlias = bool | str | os.PathLike[str] | Tls


@dataclass(frozen=True, slots=True)
class Connection:
    """Checked settings of a connection; the arguments of `Client` describe each."""

    address: str
    metadata: tuple[tuple[str, str], ...]
    credentials: grpc.ChannelCredentials | None
    timeout: float
    in_flight: int
    limits: calls.MessageLimits
    retry: retries.RetryPolicy


def checked(
    address: str,
    token: str | None,
    tls: TlsLike,
    timeout: float,
    in_flight: int,
    limits: calls.MessageLimits | None,
    retry: retries.RetryPolicy | None,
) -> Connection:
    """Check a client's arguments; raises InvalidArgumentError, or NotFoundError for a file that cannot be read."""
    conversions.bounded("timeout", timeout, 0.001)
    conversions.bounded("in_flight", in_flight, 1, 1024)
    return Connection(
        complete_address(address),
        _metadata(token),
        _credentials(tls),
        timeout,
        in_flight,
        limits or calls.MessageLimits(),
        retry or retries.RetryPolicy(),
    )


def _metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata of every call; raises InvalidArgumentError for a token that no header can hold."""
    if not token:
        return ()
    if not token.isascii() or not token.isprintable():
        raise InvalidArgumentError("the token has characters that a header cannot hold", field="token")
    return (("authorization", f"Bearer {token}"),)


def _credentials(tls: TlsLike) -> grpc.ChannelCredentials | None:
    """Make the channel's credentials, None for plain text; raises NotFoundError for a file that cannot be read."""
    if tls is False:
        return None
    files = tls if isinstance(tls, Tls) else Tls(None if tls is True else Path(tls))
    if (files.certificate is None) != (files.key is None):
        raise InvalidArgumentError("mutual TLS needs both a certificate and its key", field="tls")
    credentials = grpc.ssl_channel_credentials(_read(files.ca), _read(files.key), _read(files.certificate))
    _check_files(files)
    return credentials


def _check_files(files: Tls) -> None:
    """Refuse files that gRPC would accept, only to fail at the first call without a reason."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if files.ca is not None:
        try:
            context.load_verify_locations(files.ca)
        except (OSError, ValueError):
            raise InvalidArgumentError(f"{files.ca}: no certificates in PEM", field="tls") from None
    if files.certificate is not None:
        try:
            # The password keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(files.certificate, files.key, password="")
        except (OSError, ValueError):
            raise InvalidArgumentError(
                f"{files.certificate} and {files.key} are no certificate and its key, in PEM, without a password",
                field="tls",
            ) from None


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror or error}", field="tls") from error
