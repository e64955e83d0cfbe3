"""Embed in this process or in the workers of a Ray cluster, for `imagekin index` and `imagekin embed --model`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import typer

from imagekin.cli.shared import options
from imagekin.errors import InvalidArgumentError
from imagekin.machine import Device
from imagekin.settings import check, option

if TYPE_CHECKING:
    from imagekin.encoder.runtime.session import Encoder
    from imagekin.index.ingest.embed_stage import LoadBoth
    from imagekin.index.ingest.intake import Conflict
    from imagekin.index.ingest.pipeline import Sink
    from imagekin.sources.ignored import Ignored
    from imagekin.sources.records import Record, Source

Name: TypeAlias = Literal["local", "ray"]

PANEL = "Embedding with --model"


class Records(Protocol):
    """Records of a source, embedded or still to be embedded, and the files skipped."""

    @property
    def ignored(self) -> "Ignored":
        """The files skipped, by kind and reason."""
        ...

    def __iter__(self) -> Iterator["Record"]:
        """Yield the records."""
        ...


@dataclass(frozen=True, slots=True)
class Engine:
    """Options of where to embed: in this process or on a Ray cluster."""

    # A kill loses so many images at most; with smaller batches, writing to the store costs a noticeable share.
    batch_size: int = option(256, "Images in hand, which a kill may cost.", panel=PANEL, least=1)
    workers: int = option(0, "Threads that decode, here or in each worker; 0 is one per core.", panel=PANEL, least=0)
    device: Device = option("auto", "Where the model runs.", panel=PANEL)
    name: Name = option("local", "Who embeds: this process, or workers of a Ray cluster.", flag="--engine", panel=PANEL)
    ray_address: str | None = option(
        None,
        "The cluster's head node; without it RAY_ADDRESS, else one is started here.",
        metavar="HOST:PORT",
        panel=PANEL,
    )
    ray_workers: int | None = option(
        None, "Processes that embed; one per GPU, or per core.", metavar="N", panel=PANEL, least=1
    )

    def __post_init__(self) -> None:
        check(self)

    def refuse_idle(self, ctx: typer.Context) -> None:
        """Refuse options of Ray on the command line when Ray does not embed; raise InvalidArgumentError."""
        for name in ("ray_address", "ray_workers"):
            if self.name == "local" and options.typed(ctx, name):
                raise InvalidArgumentError(f"--{name.replace('_', '-')} goes with --engine ray", field=name)

    @property
    def here(self) -> Device:
        """Device on which this process opens the model; the CPU when it only reads the metadata."""
        return self.device if self.name == "local" else "cpu"

    def started(self) -> AbstractContextManager[None]:
        """Return a context manager that starts and stops the engine.

        Raises:
            UnavailableError: no cluster answers.
        """
        if self.name == "local":
            return nullcontext()
        from imagekin.index.ingest.ray_engine import RayWorkers, connected

        return connected(self.ray_address, RayWorkers(self.ray_workers, self.workers or 1))

    def records(
        self,
        source: "Source",
        model: Path | None,
        encoder: "Encoder | None",
        sink: "Sink",
        on_conflict: "Conflict",
        load_both: "LoadBoth | None" = None,
    ) -> tuple["Encoder | None", Records]:
        """Return the model that this process still has to apply, None for none, and the records.

        With `load_both`, see `imagekin.index.ingest.embed_stage`, workers make thumbnails, too.
        """
        if self.name == "local":
            return encoder, source
        from imagekin.index.ingest.ray_engine import ArtifactBytes, RayRecords, RayWorkers
        from imagekin.index.ingest.ray_known_items import known_items

        workers = RayWorkers(self.ray_workers, self.workers or 1, self.device)
        opened = ArtifactBytes(model.read_bytes(), self.device, workers.threads) if model and encoder else None
        known = known_items(sink, on_conflict)
        return None, RayRecords(
            source,
            opened,
            known,
            on_conflict=on_conflict,
            workers=workers,
            batch_size=self.batch_size,
            load_both=load_both,
        )
