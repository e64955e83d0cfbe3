"""Read and check the server's certificates, and replace them without a restart."""

import ssl
import threading
from pathlib import Path

import grpc

from imagekin.errors import InvalidArgumentError, NotFoundError
from imagekin.serving.transport.access import check_private


class Certificates:
    """The server's certificate and key, and the authority of its clients' certificates if clients must have any.

    Args:
        certificate: PEM file of the server's certificate chain.
        key: PEM file of its private key.
        client_ca: PEM file of the authorities whose clients are let in; None lets in clients without a certificate.

    Raises:
        NotFoundError: a file cannot be read.
        InvalidArgumentError: a file is no PEM of its kind, the key is another certificate's, or others may read it.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._lock = threading.Lock()
        self._context = _context()
        self._first = self._read()
        self._fresh: grpc.ServerCertificateConfiguration | None = None
        self._fill(self._context)

    @property
    def context(self) -> ssl.SSLContext:
        """TLS context with the same certificates for a server that is not gRPC's; it follows reloads."""
        return self._context

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials for gRPC, which ask for new certificates at each handshake."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._fetch,  # type: ignore[arg-type]  # None is documented: nothing new
            require_client_authentication=self._client_ca is not None,
        )

    def reload(self) -> None:
        """Reload the files; connections stay open, and when the new files are wrong the old ones stay in use."""
        fresh = self._read()
        self._fill(self._context)
        with self._lock:
            self._fresh = fresh

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        with self._lock:
            fresh, self._fresh = self._fresh, None
        return fresh

    def _read(self) -> grpc.ServerCertificateConfiguration:
        self._fill(_context())
        pair = (_bytes(self._key, "tls_key"), _bytes(self._certificate, "tls_cert"))
        ca = None if self._client_ca is None else _bytes(self._client_ca, "tls_client_ca")
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca)

    def _fill(self, context: ssl.SSLContext) -> None:
        for path, field in ((self._certificate, "tls_cert"), (self._key, "tls_key")):
            _bytes(path, field)
        check_private(self._key, "tls_key")
        try:
            # The password keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except (OSError, ValueError):
            raise InvalidArgumentError(
                f"{self._certificate} and {self._key} are no certificate and its key, in PEM, without a password",
                field="tls_cert",
            ) from None
        if self._client_ca is not None:
            _bytes(self._client_ca, "tls_client_ca")
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ValueError):
                raise InvalidArgumentError(
                    f"{self._client_ca}: no certificates in PEM", field="tls_client_ca"
                ) from None
            context.verify_mode = ssl.CERT_REQUIRED


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _bytes(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror}", field=field) from None
