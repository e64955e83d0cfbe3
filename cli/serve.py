"""`imagekin serve`."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from imagekin.command_options import with_options
from imagekin.serving.settings import Settings


@with_options
def serve(
    ctx: typer.Context,
    settings: Settings,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show the settings and where each is from, and serve nothing.")
    ] = False,
) -> None:
    """Answer requests over gRPC until SIGTERM or Ctrl-C: embed, search, classify, keep collections.

    SIGHUP reloads models, collections, certificates and tokens without failing a call.
    """
    if print_config:
        print(_effective(ctx))
        return
    # Before gRPC is imported: its core would write a line of its own for each failed handshake of a port scanner.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Until the server takes the signal itself: whoever ends it while it starts is not told of an error.
    signal.signal(signal.SIGTERM, _leave)
    from imagekin.serving.server import serve as run

    run(settings)


def _leave(number: int, frame: object) -> None:
    sys.exit(0)


def _effective(ctx: Any) -> str:
    """Return a command's settings as a TOML table that could be imagekin.toml, each with its origin."""
    sources = {"COMMANDLINE": "command line", "ENVIRONMENT": "environment", "DEFAULT_MAP": "file"}
    lines = [f"[{ctx.command.name}]"]
    for name, value in ctx.params.items():
        if name == "print_config":
            continue
        found = ctx.get_parameter_source(name)
        source = sources.get("" if found is None else found.name, "default")
        key = name.replace("_", "-")
        if value is None:
            lines.append(f"# {key} is not set")
        else:
            plain = [str(each) for each in value] if isinstance(value, list | tuple) else value
            # JSON's strings, numbers, booleans and lists are valid TOML, too.
            written = json.dumps(str(plain) if isinstance(plain, Path) else plain, ensure_ascii=False)
            lines.append(f"{key} = {written}  # {source}")
    return "\n".join(lines)
