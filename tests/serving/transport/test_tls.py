"""TLS and mutual TLS with real certificates: right, wrong, expired and missing ones."""

import os
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagekin import Client, Tls
from imagekin.errors import InvalidArgumentError, NotFoundError, UnavailableError
from imagekin.serving.settings import Settings
from imagekin.serving.transport.tls import Certificates
from tests.serving.certificates import Authority, Pair
from tests.serving.running import Running, png, running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that everyone trusts."""
    return Authority(tmp_path_factory.mktemp("ca"), "trusted")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("ca"), "stranger")


def settings(model: Path, pair: Pair, client_ca: Path | None = None) -> Settings:
    return Settings(
        address="127.0.0.1:0",
        models=(("tiny", model),),
        tls_cert=pair.certificate,
        tls_key=pair.key,
        tls_client_ca=client_ca,
        metrics_address="127.0.0.1:0",
    )


@pytest.fixture(scope="module")
def encrypted(model_path: Path, authority: Authority) -> Iterator[Running]:
    """A server with TLS."""
    with running(settings(model_path, authority.issue("server"))) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(model_path: Path, authority: Authority) -> Iterator[Running]:
    """A server that asks clients for certificates, too."""
    with running(settings(model_path, authority.issue("mutual"), authority.certificate)) as server:
        yield server


def embed(server: Running, tls: Tls | bool, timeout: float = 10) -> None:
    """Embed an image, or raise."""
    with Client(f"localhost:{server.server.port}", tls=tls, timeout=timeout) as client:
        assert client.embed([png(1)]).shape == (1, 16)


def refused(server: Running, tls: Tls | bool) -> None:
    """Check that no image is embedded, however often the client tries within a second."""
    with pytest.raises(UnavailableError):
        embed(server, tls, timeout=1)


def test_a_client_that_trusts_the_authority_is_served(encrypted: Running, authority: Authority) -> None:
    embed(encrypted, Tls(ca=authority.certificate))


def test_plain_text_and_a_client_that_trusts_others_are_not(encrypted: Running, stranger: Authority) -> None:
    for tls in (False, True, Tls(ca=stranger.certificate)):
        refused(encrypted, tls)


def test_a_client_does_not_trust_an_expired_server(model_path: Path, authority: Authority) -> None:
    with running(settings(model_path, authority.issue("old", expired=True))) as server:
        refused(server, Tls(ca=authority.certificate))


def test_a_client_with_a_certificate_is_served(mutual: Running, authority: Authority) -> None:
    mine = authority.issue("client")
    embed(mutual, Tls(ca=authority.certificate, certificate=mine.certificate, key=mine.key))


def test_clients_with_no_a_wrong_or_an_expired_certificate_are_not(
    mutual: Running, authority: Authority, stranger: Authority
) -> None:
    pairs = (stranger.issue("client"), authority.issue("late", expired=True))
    wrong = [Tls(authority.certificate, pair.certificate, pair.key) for pair in pairs]
    for tls in (Tls(authority.certificate), *wrong):
        refused(mutual, tls)
    own = authority.issue("client")
    embed(mutual, Tls(authority.certificate, own.certificate, own.key))


def test_metrics_are_under_the_same_certificates(mutual: Running, authority: Authority) -> None:
    url = f"https://localhost:{mutual.server.metrics_port}/metrics"
    context = ssl.create_default_context(cafile=authority.certificate)
    with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
        urllib.request.urlopen(url, context=context, timeout=10).read()
    mine = authority.issue("scraper")
    context.load_cert_chain(mine.certificate, mine.key)
    with urllib.request.urlopen(url, context=context, timeout=10) as answer:
        assert b"imagekin_model_info" in answer.read()


def replace(target: Pair, source: Pair) -> None:
    """Put a pair in another one's place, as a renewal does."""
    for old, new in ((target.certificate, source.certificate), (target.key, source.key)):
        temporary = old.with_suffix(".new")
        shutil.copy(new, temporary)
        os.replace(temporary, old)


def test_a_renewed_certificate_is_served_after_a_reload(
    model_path: Path, authority: Authority, stranger: Authority
) -> None:
    pair = authority.issue("renewed")
    with running(settings(model_path, pair)) as server:
        embed(server, Tls(ca=authority.certificate))
        replace(pair, stranger.issue("renewal"))
        embed(server, Tls(ca=authority.certificate))
        server.run(server.server.reload())
        embed(server, Tls(ca=stranger.certificate))
        refused(server, Tls(ca=authority.certificate))
        pair.certificate.write_text("no certificate")
        server.run(server.server.reload())
        embed(server, Tls(ca=stranger.certificate))


def test_files_that_cannot_be_used_are_one_clear_error(authority: Authority, tmp_path: Path) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    with pytest.raises(InvalidArgumentError, match="no certificate and its key"):
        Certificates(one.certificate, two.key)
    with pytest.raises(NotFoundError, match="cannot be read"):
        Certificates(tmp_path / "none.pem", one.key)
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(InvalidArgumentError, match="no certificates in PEM"):
        Certificates(one.certificate, one.key, tmp_path / "ca.pem")
    two.key.chmod(0o644)
    with pytest.raises(InvalidArgumentError, match="chmod 600"):
        Certificates(two.certificate, two.key)
