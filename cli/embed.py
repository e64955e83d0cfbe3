"""`imagekin embed`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagekin import files
from imagekin.cli.shared import engines, options
from imagekin.command_options import AsJson, with_options
from imagekin.counting import counted
from imagekin.errors import ImageError, InvalidArgumentError

if TYPE_CHECKING:
    from imagekin.types import Vector


@with_options
def embed(
    ctx: typer.Context,
    images: options.Sources,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write FILE.npy, float32 [N, D], and the keys to FILE.keys; or FILE.parquet, a row an image.",
        ),
    ] = None,
    *,
    artifact: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            metavar="FILE",
            help="Embed here with this artifact, to FILE.parquet.",
            rich_help_panel=engines.PANEL,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.parquet",
            help="Write failures and duplicates there.",
            rich_help_panel=engines.PANEL,
        ),
    ] = None,
    label_from: options.LabelFrom = "folder",
    engine: engines.Engine,
    server: options.ServerAddress,
    model: Annotated[str, typer.Option("--model-name", metavar="NAME", help="One of the server's models.")] = "",
    timeout: options.Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Embed images: through a server, or here with a model artifact."""
    if out is not None and out.suffix == ".parquet":
        if artifact is None:
            raise InvalidArgumentError("a .parquet file is written with --model FILE; a server's answers go to a .npy")
        engine.refuse_idle(ctx)
        _to_file(images, artifact, out, report, engine, label_from, as_json)
        return
    if options.typed(ctx, "artifact") or report is not None or options.typed(ctx, "engine"):
        raise InvalidArgumentError("--model, --report and --engine go with --out FILE.parquet")
    from imagekin.cli.shared import console
    from imagekin.cli.shared.image_sources import Tally, answered, reading

    tally = Tally()
    kept: list[dict[str, Any]] = []
    started = time.perf_counter()
    with (
        server.connect(timeout) as client,
        _output(out) as write,
        reading(images, "embed", tally) as (records, advance),
        console.Rows(["key", "embedding"], silent=as_json or out is not None) as rows,
    ):
        ask = lambda images: client.iter_embed(images, model=model)  # noqa: E731
        for named, vector in answered(records, ask, tally, advance):
            if write is not None:
                write.add(named.key, vector)
            elif as_json:
                kept.append({"key": named.key, "embedding": vector.tolist()})
            rows.add(named.key, " ".join(f"{value:.6g}" for value in vector))
    seconds = time.perf_counter() - started
    console.list_failures(tally.failed, tally.failed_count)
    console.say_ignored(tally.ignored)
    if as_json:
        where = {"out": str(out)} if out is not None else {"embeddings": kept}
        console.print_json({**where, **console.totals(tally, seconds)})
    else:
        console.say(console.summary("embedded", tally, seconds))
    console.fail_if_nothing(tally, images)


def _to_file(
    sources: list[str],
    artifact: Path,
    out: Path,
    report: Path | None,
    engine: engines.Engine,
    label_from: str,
    as_json: bool,
) -> None:
    """Embed sources here into a Parquet file, in constant memory; the file appears only on success."""
    from imagekin.cli.shared import console
    from imagekin.cli.shared.batch_progress import pace
    from imagekin.encoder.runtime.tuning import open_for_files
    from imagekin.index.ingest.pipeline import index_images
    from imagekin.index.ingest.vector_file import VectorFile
    from imagekin.progress import progress
    from imagekin.sources.open import open_sources

    source = open_sources(sources, label_from=label_from)
    if source.embedded is not None:
        raise InvalidArgumentError("these are vectors already", field="sources")
    encoder = open_for_files(artifact, engine.here)
    with (
        engine.started(),
        VectorFile(out, space=encoder.metadata.space, dim=encoder.metadata.dim) as file,
        options.report_table(report) if report is not None else nullcontext() as table,
    ):
        console.say_plan(source.plan)
        total = source.count()
        left, records = engine.records(source, artifact, encoder, file, "replace")
        with progress("embed", total) as advance:
            done = index_images(
                left,
                records,
                file,
                batch_size=engine.batch_size,
                workers=engine.workers or None,
                total=total,
                on_progress=pace(advance),
                on_finding=None if table is None else table.add,
            )
        console.list_failures(done.failed, done.failed_count)
        console.say_ignored(records.ignored)
        if not done.written:
            raise (
                ImageError(f"of {counted(done.seen, 'image')}, none could be embedded")
                if done.seen
                else console.no_images(sources)
            )
    if as_json:
        failed = {"failed_count": done.failed_count, "failed": console.failures_json(done.failed)}
        rate = {"seconds": done.seconds, "images_per_second": done.images_per_second}
        figures = {"out": str(out), "images": done.written, "duplicates": done.duplicates, **failed, **rate}
        console.print_json({**figures, **console.plan_json(source.plan, records.ignored)})
    else:
        duplicates = f", {counted(done.duplicates, 'duplicate')} by content" if done.duplicates else ""
        failures = f", {done.failed_count:,} failed" if done.failed_count else ""
        speed = f"{done.seconds:.1f} s ({done.images_per_second:,.0f} images/s)"
        print(f"{counted(done.written, 'image')} embedded to {out}{duplicates}{failures}; {speed}")


class _NpyWriter:
    """Write rows of unknown number to a .npy file, and their keys to a file beside it, a line each.

    Args:
        vectors: open for writing bytes, with seek.
        keys: open for writing bytes.
    """

    def __init__(self, vectors: Any, keys: Any) -> None:
        self._vectors = vectors
        self._keys = keys
        self._shape = (0, 0)

    def add(self, key: str, vector: "Vector") -> None:
        """Write one row [D] and its key."""
        if self._shape[0] == 0:
            self._shape = (0, len(vector))
            self._header()
        self._vectors.write(vector.astype("<f4").tobytes())
        self._keys.write(key.encode() + b"\n")
        self._shape = (self._shape[0] + 1, self._shape[1])

    def finish(self) -> None:
        """Write the number of rows into the header, which has room for it to grow."""
        self._vectors.seek(0)
        self._header()

    def _header(self) -> None:
        from numpy.lib import format as npy

        npy.write_array_header_1_0(self._vectors, {"descr": "<f4", "fortran_order": False, "shape": self._shape})


@contextmanager
def _output(out: Path | None) -> Iterator[_NpyWriter | None]:
    """Open FILE.npy and FILE.keys under temporary names, and rename them on success."""
    if out is None:
        yield None
        return
    with (
        files.replacing(out) as first,
        files.replacing(out.with_suffix(".keys")) as second,
        first.open("wb") as vectors,
        second.open("wb") as keys,
    ):
        writer = _NpyWriter(vectors, keys)
        yield writer
        writer.finish()
