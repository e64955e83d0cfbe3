"""`kindred health`."""

from typing import Annotated

import typer

from encoder.errors import PermissionDeniedError, UnauthenticatedError, UnavailableError
from kindred.commands import shared


def health(
    address: shared.Address = shared.DEFAULT_ADDRESS,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="Wait so long until the server is ready.", min=0)
    ] = 0.0,
    token: shared.Token = None,
    tls: shared.TlsFlag = False,
    ca: shared.CaFile = None,
    client_cert: shared.ClientCert = None,
    client_key: shared.ClientKey = None,
    as_json: shared.AsJson = False,
) -> None:
    """Ask a server whether it is serving; exit status 0 when it is, 1 when not."""
    from kindred.console import print_json

    with shared.connect(address, token, shared.encryption(tls, ca, client_cert, client_key), timeout=5.0) as client:
        if wait:
            client.wait_ready(wait)
        elif not client.health():
            raise UnavailableError(f"{address} answers that it is not serving")
        try:
            models = client.models()
        except (UnauthenticatedError, PermissionDeniedError):
            # Health needs no token, so a probe has none; the names of models do.
            models = []
    if as_json:
        print_json({"serving": True, "models": [model.name for model in models]})
        return
    print(f"{address} is serving", ", ".join(f"{model.name} ({model.dim} components)" for model in models))
