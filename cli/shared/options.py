"""Options that several subcommands share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagekin.command_options import rank
from imagekin.errors import InvalidArgumentError
from imagekin.machine import Device
from imagekin.settings import option

if TYPE_CHECKING:
    from imagekin.client.sync_client import Client
    from imagekin.index.ingest.report_table import ReportTable
    from imagekin.index.interface import Collections

_DEFAULT_ADDRESS = "127.0.0.1:50051"

DeviceOption = Annotated[Device, typer.Option("--device", help="Where the model runs.")]
CollectionName = Annotated[str, typer.Option("--collection", "-c", metavar="NAME", help="The collection to ask.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The collection's name.")]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE...", help="Files, folders, archives, tables, patterns, URLs or -; see docs/reference/sources.md."
    ),
]
LabelFrom = Annotated[
    str,
    typer.Option(
        "--label-from",
        metavar="folder|parent|none|column:NAME|REGEX",
        help="What names an image's class: its folders (and tables), its own folder only, nothing, a column of"
        " tables, or the group of a regular expression that is searched in its path.",
    ),
]
Filter = Annotated[
    str | None,
    typer.Option("--filter", "-f", metavar="CONDITION", help="""Only items that match, such as 'label = "shoe"'."""),
]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="Longest time for one message.", min=0.001)
]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Encryption and identity of calls to a server.

    Raises:
        InvalidArgumentError: one of the client's certificate and its key is given without the other.
    """

    token: str | None = option(None, "Bearer token; better kept in IMAGEKIN_TOKEN.", metavar="TOKEN")
    tls: bool = option(False, "Encrypt, trusting the system's certificates.")
    ca: Path | None = option(None, "Encrypt, trusting these certificates (PEM).", metavar="FILE")
    client_cert: Path | None = option(None, "Encrypt, and show the server this certificate (PEM).", metavar="FILE")
    client_key: Path | None = option(None, "The private key of --client-cert (PEM).", metavar="FILE")

    def __post_init__(self) -> None:
        if (self.client_cert is None) != (self.client_key is None):
            raise InvalidArgumentError("--client-cert and --client-key go together")

    def connect(self, address: str, timeout: float) -> "Client":
        """Return a client of the server at an address; `timeout` is that of one message, in seconds."""
        from imagekin.client.connection import Tls
        from imagekin.client.sync_client import Client

        own = self.client_cert is not None
        encryption = Tls(self.ca, self.client_cert, self.client_key) if own else self.ca or self.tls
        return Client(address, token=self.token, tls=encryption, timeout=timeout)


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Address of a server, with credentials."""

    address: str = option(_DEFAULT_ADDRESS, "The server.", short="-a", metavar="HOST:PORT")
    credentials: Credentials = field(default_factory=Credentials)

    def connect(self, timeout: float) -> "Client":
        """Return a client of the server; `timeout` is that of one message, in seconds."""
        return self.credentials.connect(self.address, timeout)


@dataclass(frozen=True, slots=True)
class ServerOrFolder:
    """Source of the answers: a server, or a folder here, which a process of its own serves while the command runs."""

    address: str | None = option(
        None,
        "The server.",
        short="-a",
        metavar="HOST:PORT",
        exclusive=True,
        default_help=_DEFAULT_ADDRESS,
    )
    data_dir: Path | None = option(
        None, "Folder of the collections, read here without a server.", short="-d", metavar="DIR", exclusive=True
    )
    model: Path | None = option(
        None, "With --data-dir: the model artifact that embeds the images.", short="-m", metavar="FILE"
    )
    credentials: Credentials = field(default_factory=Credentials)

    def check_model(self) -> None:
        """Raise InvalidArgumentError where images cannot be embedded: in a folder without a model."""
        if self.data_dir is not None and self.model is None:
            raise InvalidArgumentError(
                "with --data-dir give --model FILE, too: the model artifact that the collection was made with",
                field="model",
            )

    def connect(self, timeout: float, *, write: bool = False) -> "Client":
        """Return a client.

        Args:
            timeout: seconds that one message may take.
            write: open a folder to write to it, which one process at a time may.

        Raises:
            InvalidArgumentError: there is no such folder.
            ImagekinError: the folder or the model cannot be used.
        """
        if self.data_dir is None:
            return self.credentials.connect(self.address or _DEFAULT_ADDRESS, timeout)
        if not self.data_dir.is_dir():
            raise InvalidArgumentError(f"no folder {self.data_dir}", field="data_dir")
        from imagekin.client.sync_client import Client

        return Client.local(self.data_dir, model=self.model, read_only=not write, timeout=timeout)


@dataclass(frozen=True, slots=True)
class Folder:
    """Place where this machine keeps collections: a folder, Milvus, or neither."""

    data_dir: Path | None = option(
        None, "Folder of the collections, opened here.", short="-d", metavar="DIR", exclusive=True
    )
    store: str | None = option(
        None, "Collections in Milvus: milvus://HOST:PORT or milvus-lite:///FILE.db.", metavar="URL", exclusive=True
    )

    @property
    def here(self) -> Path | str | None:
        """The folder or the address of the store, None where neither is given."""
        return self.store if self.data_dir is None else self.data_dir

    def open(self, *, read_only: bool = False, create: bool = False) -> "Collections":
        """Open the collections.

        Args:
            read_only: create, change and drop nothing.
            create: create the folder if there is none.

        Raises:
            InvalidArgumentError: neither is given, there is no such folder, or the address names no store.
        """
        from imagekin.index.open import open_collections

        place = self.here
        if place is None:
            raise InvalidArgumentError("say --data-dir: this works on the folder of the collections", field="data_dir")
        if isinstance(place, Path) and not create and not place.is_dir():
            raise InvalidArgumentError(f"no folder {place}", field="data_dir")
        return open_collections(place, read_only=read_only, check_first=True)


@dataclass(frozen=True, slots=True)
class CollectionsPlace(Folder):
    """Place where collections are kept: this machine or a server.

    Raises:
        InvalidArgumentError: none is given.
    """

    address: str | None = option(
        None, "A server that keeps the collection.", short="-a", metavar="HOST:PORT", exclusive=True
    )
    credentials: Credentials = field(default_factory=Credentials)

    def __post_init__(self) -> None:
        if self.here is None and self.address is None:
            raise InvalidArgumentError(
                "give either --data-dir (collections in a folder here), --store (in Milvus) or --address (of a server)"
            )

    def connect(self, timeout: float) -> "Client":
        """Return a client of the server, where `here` is None; `timeout` is that of one message, in seconds."""
        return self.credentials.connect(self.address or "", timeout)


def report_table(path: Path) -> "ReportTable":
    """Open the table of a run's findings for writing.

    Raises:
        InvalidArgumentError: the name is not one of a Parquet file, or there is no such folder.
    """
    if path.suffix != ".parquet" or not path.parent.is_dir():
        raise InvalidArgumentError(f"--report names a .parquet file in a folder that exists, not {path}")
    from imagekin.index.ingest.report_table import ReportTable

    return ReportTable(path)


def typed(ctx: typer.Context, name: str) -> bool:
    """Return whether an option was given on the command line, not only in the environment or the settings file."""
    return rank(ctx, name) == 0
