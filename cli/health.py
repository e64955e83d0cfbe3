"""`imagekin health`."""

from typing import Annotated

import typer

from imagekin.cli.shared import options
from imagekin.errors import PermissionDeniedError, UnauthenticatedError, UnavailableError


def health(
    address: options.Address = options.DEFAULT_ADDRESS,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="Wait so long until the server is ready.", min=0)
    ] = 0.0,
    token: options.Token = None,
    tls: options.TlsFlag = False,
    ca: options.CaFile = None,
    client_cert: options.ClientCert = None,
    client_key: options.ClientKey = None,
    as_json: options.AsJson = False,
) -> None:
    """Ask a server whether it is serving; exit status 0 when it is, 1 when not."""
    from imagekin.cli.shared.console import print_json

    with options.connect(address, token, options.encryption(tls, ca, client_cert, client_key), timeout=5.0) as client:
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
