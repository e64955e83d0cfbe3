"""Options that several subcommands have, and what they stand for."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encoder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from index.report_table import ReportTable
    from kindred.client import Client

DEFAULT_ADDRESS = "127.0.0.1:50051"

Address = Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="The server.")]
RemoteAddress = Annotated[
    str | None, typer.Option("--address", metavar="HOST:PORT", help="A server that keeps the collection.")
]
Token = Annotated[
    str | None, typer.Option("--token", metavar="TOKEN", help="Bearer token; better kept in KINDRED_TOKEN.")
]
TlsFlag = Annotated[bool, typer.Option("--tls", help="Encrypt, trusting the system's certificates.")]
CaFile = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", help="Encrypt, trusting these certificates (PEM).")
]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="Longest time for one message.", min=0.001)
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON object on the last line.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Folder of the collections, opened here.")
]
CollectionName = Annotated[str, typer.Option("--collection", metavar="NAME", help="The collection to ask.")]
Sources = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE...", help="Files, folders, archives, tables, patterns, URLs or - (see README)."),
]
Filter = Annotated[
    str | None,
    typer.Option("--filter", metavar="CONDITION", help="""Only items that match, such as 'label = "shoe"'."""),
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda", help="Where the model runs.")]


def connect(
    address: str, token: str | None, tls: bool, ca: Path | None, timeout: float, in_flight: int = 4
) -> "Client":
    """Return a client for the options that all commands with a server have."""
    from kindred.client import Client

    return Client(address, token=token, tls=ca or tls, timeout=timeout, in_flight=in_flight)


def report_table(path: Path) -> "ReportTable":
    """Return the table of a run's findings, opened for writing.

    Raises:
        InvalidArgumentError: the name is not one of a Parquet file, or there is no such folder.
    """
    if path.suffix != ".parquet" or not path.parent.is_dir():
        raise InvalidArgumentError(f"--report names a .parquet file in a folder that exists, not {path}")
    from index.report_table import ReportTable

    return ReportTable(path)


def place(ctx: typer.Context, data_dir: Path | None, address: str | None) -> tuple[Path | None, str | None]:
    """Return the folder or the server that the user means, and None for the other.

    One that was given on the command line wins over one from the environment, and that over one from the file.

    Raises:
        InvalidArgumentError: neither is given, or both in the same way.
    """
    if data_dir is not None and address is not None:
        ranks = [_rank(ctx, name) for name in ("data_dir", "address")]
        if ranks[0] < ranks[1]:
            address = None
        elif ranks[1] < ranks[0]:
            data_dir = None
    if (data_dir is None) == (address is None):
        raise InvalidArgumentError(
            "give either --data-dir (collections in a folder here) or --address (collections of a server), not both"
        )
    return data_dir, address


def typed(ctx: typer.Context, name: str) -> bool:
    """Return whether an option stands on the command line, and not only in the environment or the settings file."""
    return _rank(ctx, name) == 0


def _rank(ctx: typer.Context, name: str) -> int:
    source = ctx.get_parameter_source(name)
    order = ["COMMANDLINE", "PROMPT", "ENVIRONMENT", "DEFAULT_MAP", "DEFAULT"]
    return order.index(source.name) if source is not None else len(order)
