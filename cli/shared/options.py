"""Options that several subcommands have, and what they stand for."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagekin.errors import InvalidArgumentError

if TYPE_CHECKING:
    from imagekin.client.channel import TlsLike
    from imagekin.client.sync_client import Client
    from imagekin.index.ingest.report_table import ReportTable
    from imagekin.index.interface import Collections

DEFAULT_ADDRESS = "127.0.0.1:50051"

Address = Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="The server.")]
RemoteAddress = Annotated[
    str | None, typer.Option("--address", metavar="HOST:PORT", help="A server that keeps the collection.")
]
Token = Annotated[
    str | None, typer.Option("--token", metavar="TOKEN", help="Bearer token; better kept in IMAGEKIN_TOKEN.")
]
TlsFlag = Annotated[bool, typer.Option("--tls", help="Encrypt, trusting the system's certificates.")]
CaFile = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", help="Encrypt, trusting these certificates (PEM).")
]
ClientCert = Annotated[
    Path | None,
    typer.Option("--client-cert", metavar="FILE", help="Encrypt, and show the server this certificate (PEM)."),
]
ClientKey = Annotated[
    Path | None, typer.Option("--client-key", metavar="FILE", help="The private key of --client-cert (PEM).")
]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="Longest time for one message.", min=0.001)
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON object on the last line.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Folder of the collections, opened here.")
]
Store = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="Collections in Milvus: milvus://HOST:PORT or milvus-lite:///FILE.db."),
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


def encryption(tls: bool, ca: Path | None, client_cert: Path | None, client_key: Path | None) -> "TlsLike":
    """Return what the four options about encryption mean; any of them asks for it.

    Raises:
        InvalidArgumentError: one of the client's certificate and its key is given without the other.
    """
    if client_cert is None and client_key is None:
        return ca or tls
    if client_cert is None or client_key is None:
        raise InvalidArgumentError("--client-cert and --client-key go together")
    from imagekin.client.channel import Tls

    return Tls(ca, client_cert, client_key)


def connect(address: str, token: str | None, tls: "TlsLike", timeout: float, in_flight: int = 4) -> "Client":
    """Return a client for the options that all commands with a server have."""
    from imagekin.client.sync_client import Client

    return Client(address, token=token, tls=tls, timeout=timeout, in_flight=in_flight)


def report_table(path: Path) -> "ReportTable":
    """Return the table of a run's findings, opened for writing.

    Raises:
        InvalidArgumentError: the name is not one of a Parquet file, or there is no such folder.
    """
    if path.suffix != ".parquet" or not path.parent.is_dir():
        raise InvalidArgumentError(f"--report names a .parquet file in a folder that exists, not {path}")
    from imagekin.index.ingest.report_table import ReportTable

    return ReportTable(path)


def place(
    ctx: typer.Context, data_dir: Path | None, address: str | None, store: str | None
) -> tuple[Path | str | None, str | None]:
    """Return the folder (or the store) or the server that the user means, and None for the other.

    One that was given on the command line wins over one from the environment, and that over one from the file.

    Raises:
        InvalidArgumentError: none is given, or several in the same way.
    """
    meant = _meant(ctx, {"data_dir": data_dir, "address": address, "store": store})
    if meant is None:
        raise InvalidArgumentError(
            "give either --data-dir (collections in a folder here), --store (in Milvus) or --address (of a server)"
        )
    return (None, address) if meant == "address" else (data_dir if meant == "data_dir" else store, None)


def kept(ctx: typer.Context, data_dir: Path | None, store: str | None) -> Path | str | None:
    """Return the folder or the address of the store that the user means, None where neither is given.

    Raises:
        InvalidArgumentError: both are given in the same way.
    """
    return {"data_dir": data_dir, "store": store, None: None}[_meant(ctx, {"data_dir": data_dir, "store": store})]


def kept_here(ctx: typer.Context, data_dir: Path | None, store: str | None) -> Path | str:
    """Return the folder or the address of the store that the user means.

    Raises:
        InvalidArgumentError: neither is given, or both in the same way.
    """
    found = kept(ctx, data_dir, store)
    if found is None:
        raise InvalidArgumentError("say --data-dir: this works on the folder of the collections", field="data_dir")
    return found


def collections(place: Path | str, *, read_only: bool = False) -> "Collections":
    """Open the collections of a folder or a store.

    Raises:
        InvalidArgumentError: there is no such folder, or the address names no store.
    """
    from imagekin.index.open import open_collections

    if isinstance(place, Path) and not place.is_dir():
        raise InvalidArgumentError(f"no folder {place}", field="data_dir")
    return open_collections(place, read_only=read_only)


def _meant(ctx: typer.Context, values: Mapping[str, object]) -> str | None:
    ranks = {name: _rank(ctx, name) for name, value in values.items() if value is not None}
    first = [name for name, rank in ranks.items() if rank == min(ranks.values())]
    if len(first) > 1:
        options = ["--" + name.replace("_", "-") for name in first]
        raise InvalidArgumentError(f"give {' or '.join(options)}, not {'both' if len(options) == 2 else 'all'}")
    return first[0] if first else None


def typed(ctx: typer.Context, name: str) -> bool:
    """Return whether an option stands on the command line, and not only in the environment or the settings file."""
    return _rank(ctx, name) == 0


def _rank(ctx: typer.Context, name: str) -> int:
    source = ctx.get_parameter_source(name)
    order = ["COMMANDLINE", "PROMPT", "ENVIRONMENT", "DEFAULT_MAP", "DEFAULT"]
    return order.index(source.name) if source is not None else len(order)
