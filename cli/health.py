"""`imagekin health`."""

from typing import Annotated

import typer

from imagekin.cli.shared import options
from imagekin.command_options import AsJson, with_options
from imagekin.errors import PermissionDeniedError, UnauthenticatedError, UnavailableError


@with_options
def health(
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="Wait so long until the server is ready.", min=0)
    ] = 0.0,
    *,
    server: options.ServerAddress,
    as_json: AsJson = False,
) -> None:
    """Ask a server whether it is serving; exit status 0 when it is, 1 when not."""
    from imagekin.cli.shared.console import print_json

    with server.connect(timeout=5.0) as client:
        if wait:
            client.wait_ready(wait)
        elif not client.health():
            raise UnavailableError(f"{server.address} answers that it is not serving")
        try:
            models = client.models()
        except (UnauthenticatedError, PermissionDeniedError):
            # A probe has no token, because health needs none; listing the models does.
            models = []
    if as_json:
        print_json({"serving": True, "models": [model.name for model in models]})
        return
    print(f"{server.address} is serving", ", ".join(f"{model.name} ({model.dim} components)" for model in models))
