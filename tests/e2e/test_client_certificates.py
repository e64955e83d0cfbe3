"""The command against a real server that asks clients for certificates: right, wrong, expired and missing ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.artifacts import tiny_artifact
from tests.e2e.pictures import COLOURS, picture
from tests.e2e.processes import run, running_server
from tests.serving.certificates import Authority, Pair


@dataclass(frozen=True)
class Mutual:
    """A server that lets in only clients of its authority."""

    address: str
    authority: Authority
    own: Pair
    folder: Path

    def options(self, pair: Pair | None = None, ca: Path | None = None) -> list[str]:
        """Return a command's options for the server, with a client's certificate where one is given."""
        shown = ["--client-cert", str(pair.certificate), "--client-key", str(pair.key)] if pair is not None else []
        return ["--address", self.address, "--ca", str(ca or self.authority.certificate), *shown]


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mutual]:
    """A running server, and a client's certificate that it takes."""
    folder = tmp_path_factory.mktemp("mutual")
    authority = Authority(folder / "ca", "trusted")
    server = authority.issue("server")
    options = ("--tls-cert", server.certificate, "--tls-key", server.key, "--tls-client-ca", authority.certificate)
    with running_server(tiny_artifact(folder / "model.onnx"), folder / "data", *map(str, options)) as running:
        yield Mutual(running.address, authority, authority.issue("client"), folder)


def test_every_command_reaches_the_server_with_its_certificate(mutual: Mutual) -> None:
    photo = mutual.folder / "red" / "photo.png"
    photo.parent.mkdir()
    photo.write_bytes(picture(COLOURS["red"], 1))
    own = mutual.options(mutual.own)
    for command in (
        ("index", "shop", str(photo.parent), "--model", str(mutual.folder / "model.onnx")),
        ("health",),
        ("embed", str(photo)),
        ("search", str(photo), "--collection", "shop", "--k", "1"),
        ("classify", str(photo), "--collection", "shop"),
        ("collection", "list"),
        ("collection", "info", "shop"),
        ("collection", "scroll", "shop"),
        ("collection", "count", "shop"),
        ("collection", "facet", "shop", "label"),
        ("collection", "snapshot", "shop"),
        ("collection", "delete", "shop", "--filter", 'label = "none"', "--yes"),
        ("collection", "drop", "shop", "--yes"),
    ):
        done = run(*command, *own)
        assert done.returncode == 0, (command, done.stderr)


def test_the_environment_and_the_settings_file_may_name_the_certificate(mutual: Mutual, tmp_path: Path) -> None:
    (tmp_path / "imagekin.toml").write_text(
        f'address = "{mutual.address}"\nca = "{mutual.authority.certificate}"\n'
        f'client-cert = "{mutual.own.certificate}"\nclient-key = "{mutual.own.key}"\n'
    )
    done = run("health", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = {
        "IMAGEKIN_ADDRESS": mutual.address,
        "IMAGEKIN_CA": str(mutual.authority.certificate),
        "IMAGEKIN_CLIENT_CERT": str(mutual.own.certificate),
        "IMAGEKIN_CLIENT_KEY": str(mutual.own.key),
    }
    assert run("health", cwd=tmp_path.parent, settings=settings).returncode == 0


@pytest.mark.parametrize("kind", ["missing", "expired", "of a stranger"])
def test_no_other_certificate_gets_in(mutual: Mutual, kind: str) -> None:
    pairs = {
        "missing": None,
        "expired": mutual.authority.issue("late", expired=True),
        "of a stranger": Authority(mutual.folder / "stranger", "stranger").issue("client"),
    }
    done = run("health", *mutual.options(pairs[kind]))
    assert done.returncode == 1
    assert done.stderr.startswith("imagekin: no answer from")
    assert "a client's certificate" in done.stderr
    assert run("health", *mutual.options(mutual.own)).returncode == 0


def test_a_server_of_a_stranger_is_not_trusted(mutual: Mutual) -> None:
    stranger = Authority(mutual.folder / "stranger2", "stranger")
    done = run("health", *mutual.options(mutual.own, stranger.certificate))
    assert done.returncode == 1
    assert "an authority that is not trusted here" in done.stderr


def test_files_that_are_no_certificate_and_key_are_one_clear_line(mutual: Mutual) -> None:
    own, other = mutual.own, mutual.authority.issue("other")
    cases = {
        "no certificate and its key": mutual.options(Pair(own.certificate, other.key)),
        "no certificates in PEM": mutual.options(own, mutual.folder / "model.onnx"),
        "cannot be read": mutual.options(Pair(mutual.folder / "none.pem", own.key)),
        "go together": [*mutual.options(), "--client-cert", str(own.certificate)],
    }
    for message, options in cases.items():
        done = run("health", *options)
        assert done.returncode in (1, 2), message
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
