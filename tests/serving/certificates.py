"""Real certificates, made with the openssl command."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("the openssl command is not here")
        self.folder = folder
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", str(self._key), "-out", str(self.certificate), "-days", "2"),
        )

    def issue(self, name: str, *, days: int = 1, expired: bool = False) -> Pair:
        """Issue a certificate for localhost and 127.0.0.1; an expired one ended in 2001."""
        key, request, certificate = (self.folder / f"{self.name}-{name}.{kind}" for kind in ("key", "csr", "crt"))
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", str(key), "-out", str(request)),
        )
        key.chmod(0o600)
        extensions = self.folder / "extensions"
        extensions.write_text(
            "[ca]\ndefault_ca=a\n[a]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
            "unique_subject=no\nx509_extensions=x\n[p]\ncommonName=supplied\n"
            "[x]\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n"
        )
        (self.folder / "index").touch()
        span = ("-startdate", "20000101000000Z", "-enddate", "20010101000000Z") if expired else ("-days", str(days))
        self._openssl(
            *("ca", "-batch", "-config", "extensions", "-cert", str(self.certificate), "-keyfile", str(self._key)),
            *("-in", str(request), "-out", str(certificate), "-notext", "-rand_serial", *span),
        )
        return Pair(certificate, key)

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=self.folder, timeout=60)
