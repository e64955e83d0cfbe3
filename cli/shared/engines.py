"""Who embeds for `imagekin index` and `imagekin embed --model`: this process, or the workers of a Ray cluster."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypeAlias

import typer

from imagekin.cli.shared import options
from imagekin.errors import InvalidArgumentError

if TYPE_CHECKING:
    from imagekin.encoder.runtime.session import Encoder
    from imagekin.index.ingest.intake import Conflict
    from imagekin.index.ingest.pipeline import Sink
    from imagekin.sources.records import Record, Source

Name: TypeAlias = Literal["local", "ray"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]

# What a kill may cost; less, and writing to the store begins to show.
BATCH_SIZE = 256

EngineOption = Annotated[Name, typer.Option("--engine", help="Who embeds: this process, or workers of a Ray cluster.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="The cluster's head node; without it RAY_ADDRESS, else one is started here.",
    ),
]
RayWorkers = Annotated[
    int | None,
    typer.Option("--ray-workers", metavar="N", help="Processes that embed; one per GPU, or per core.", min=1),
]


class Records(Protocol):
    """Records of a source, embedded or to be embedded, and how many files were passed over."""

    @property
    def ignored(self) -> int:
        """See the class."""
        ...

    def __iter__(self) -> Iterator["Record"]:
        """Yield the records."""
        ...


@dataclass(frozen=True, slots=True)
class Engine:
    """Who embeds.

    Attributes:
        name: `local` or `ray`.
        address: of the cluster.
        workers: processes of the cluster that embed.
        threads: that decode, here or in each worker; 0 leaves it to the engine.
        device: where the model runs.
        batch_size: as for `index_images`.
    """

    name: Name
    address: str | None
    workers: int | None
    threads: int
    device: Device
    batch_size: int

    @property
    def here(self) -> Device:
        """Where the model is opened by this process, which otherwise only looks at its metadata."""
        return self.device if self.name == "local" else "cpu"

    def started(self) -> AbstractContextManager[None]:
        """Return what makes the engine ready, and ends it.

        Raises:
            UnavailableError: no cluster answers.
        """
        if self.name == "local":
            return nullcontext()
        from imagekin.index.ingest.ray_engine import RayWorkers, connected

        return connected(self.address, RayWorkers(self.workers, self.threads or 1))

    def records(
        self, source: "Source", model: Path | None, encoder: "Encoder | None", sink: "Sink", on_conflict: "Conflict"
    ) -> tuple["Encoder | None", Records]:
        """Return the model that this process has still to apply, if it has to, and the records."""
        if self.name == "local":
            return encoder, source
        from imagekin.index.ingest.known_items import known_items
        from imagekin.index.ingest.ray_engine import ArtifactBytes, RayRecords, RayWorkers

        workers = RayWorkers(self.workers, self.threads or 1, self.device)
        opened = ArtifactBytes(model.read_bytes(), self.device, workers.threads) if model and encoder else None
        known = known_items(sink, on_conflict)
        return None, RayRecords(
            source, opened, known, on_conflict=on_conflict, workers=workers, batch_size=self.batch_size
        )


def chosen(
    ctx: typer.Context,
    name: Name,
    address: str | None,
    workers: int | None,
    threads: int,
    device: Device,
    batch_size: int,
) -> Engine:
    """Return the engine that the options mean.

    Raises:
        InvalidArgumentError: options for Ray without it.
    """
    if name == "local":
        for option in ("ray_address", "ray_workers"):
            if options.typed(ctx, option):
                raise InvalidArgumentError(f"--{option.replace('_', '-')} goes with --engine ray", field=option)
    return Engine(name, address, workers, threads, device, batch_size)
