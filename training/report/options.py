"""The commands `imagekin report`, `imagekin compare` and `imagekin sweep`: options in, a table or one JSON line out.

Nothing here imports torch before the options have been checked.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagekin.command_options import AsJson
from imagekin.errors import InvalidArgumentError
from imagekin.training.evaluation.settings import AllowOverlap, Near
from imagekin.training.settings import TrainSettings

if TYPE_CHECKING:
    from imagekin.training.data.arrays import Split
    from imagekin.training.evaluation.compare import RunComparison
    from imagekin.training.loop.sweep import SweepReport


def report_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|MODEL.onnx", help="The training run's folder, or any artifact.", show_default=False
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="The training images: of a run if they have moved, of an artifact always.", show_default=False
        ),
    ] = "",
    test: Annotated[str, typer.Option(help="Test images, if they are others or have moved.", show_default=False)] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="PAGE.html", help="The page.", show_default="RUN/report.html, MODEL-report.html"
        ),
    ] = None,
    near: Near = False,
    allow_overlap: AllowOverlap = False,
    as_json: AsJson = False,
) -> None:
    """Write a page: scores, curves, confusion, nearest neighbours and a map of the embeddings, in one file."""
    if run.is_file() or run.suffix == ".onnx":
        _report_artifact(run, data, test, out, near=near, allow_overlap=allow_overlap, as_json=as_json)
        return
    if out is not None:
        raise InvalidArgumentError("a run's report is written into its folder; --out is for an artifact", field="out")
    from imagekin.encoder.artifact import read_metadata
    from imagekin.training.data.identity import Identity
    from imagekin.training.data.images import has_split, load_images
    from imagekin.training.data.overlap import without_overlap
    from imagekin.training.report.details import read_scores
    from imagekin.training.report.page import find_model, write_report

    settings = TrainSettings.load(run)
    model = find_model(run)
    data, rule = data or settings.data, settings.label_from
    asked = test or settings.test or (data if has_split(data, rule) else "")
    if not asked:
        raise InvalidArgumentError("a report is about test images: name some with --test", field="test")
    preprocess = read_metadata(model).preprocess
    part: Split = "train" if has_split(data, rule) else "all"
    train = load_images(data, split=part, limit=settings.limit, preprocess=preprocess, label_from=rule)
    part = "test" if has_split(asked, rule) else "all"
    queries = load_images(asked, split=part, preprocess=preprocess, label_from=rule)
    recorded = Identity.read(run)
    queries, overlap = without_overlap(
        train,
        queries,
        near=near or settings.near,
        allowed=allow_overlap or settings.allow_overlap,
        trained_on=recorded.digests if recorded else frozenset(),
    )
    page = write_report(run, train, queries, overlap=overlap)
    finished = read_scores(run).get("finished", True)
    if as_json:
        print(json.dumps({"report": str(page), "finished": finished}))
    else:
        print(f"{page} written" + ("" if finished else "; the run is unfinished"))


def _report_artifact(
    model: Path, data: str, test: str, out: Path | None, *, near: bool, allow_overlap: bool, as_json: bool
) -> None:
    from imagekin.encoder.artifact import read_metadata
    from imagekin.training.data.identity import trained_digests
    from imagekin.training.data.overlap import without_overlap
    from imagekin.training.evaluation.compare import load_both
    from imagekin.training.report.page import write_artifact_report

    if not data:
        raise InvalidArgumentError("an artifact's report compares images: name those known with --data", field="data")
    train, queries = load_both(data, test, read_metadata(model).preprocess)
    known = trained_digests(model)
    queries, overlap = without_overlap(train, queries, near=near, allowed=allow_overlap, trained_on=known)
    page = out or model.with_name(f"{model.stem}-report.html")
    write_artifact_report(model, train, queries, page, overlap=overlap)
    print(json.dumps({"report": str(page)}) if as_json else f"{page} written")


def compare_command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|MODEL.onnx…", help="Training runs' folders, and artifacts.", show_default=False),
    ],
    data: Annotated[
        str, typer.Option(help="Labelled images, to score all of them anew and alike.", show_default=False)
    ] = "",
    test: Annotated[str, typer.Option(help="Labelled images to ask about; with --data.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Compare runs and artifacts: the settings in which they differ, their scores and their costs."""
    from imagekin.training.evaluation.compare import compare

    if test and not data:
        raise InvalidArgumentError("--test is asked by the images of --data; name them", field="data")
    comparison = compare(runs, data=data, test=test)
    if as_json:
        print(json.dumps(comparison.to_json()))
    else:
        _print_comparison(comparison)


def sweep_command(
    data: Annotated[str, typer.Argument(metavar="DATA", help="What to train on, as for train.", show_default=False)],
    vary: Annotated[
        list[str],
        typer.Option(metavar="OPTION=A,B", help="An option of train and its values; repeat it.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of all the runs.")] = Path("sweep"),
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=A", help="An option of train for all runs; repeat it."),
    ] = None,
    test: Annotated[str, typer.Option(metavar="DATA", help="Held-out data, as for train.", show_default=False)] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each setting.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Measure the effect of each option, varied alone from one base; resumes where it was stopped."""
    from imagekin.training.loop.sweep import parse_variation, sweep
    from imagekin.training.options import resolve_settings

    given: dict[str, Any] = {"test": test or None}
    for text in setting or ():
        name, values = parse_variation(text)
        if len(values) != 1:
            raise InvalidArgumentError(f"--set {text}: give one value; --vary takes several", field="set")
        given[name] = values[0]
    base = resolve_settings(data, out, given, resume=False)
    varied = dict(parse_variation(text) for text in vary)
    if len(varied) != len(vary):
        raise InvalidArgumentError("--vary names an option twice; list its values behind one comma", field="vary")
    report = sweep(base, varied, seeds=seeds)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        _print_sweep(report)


def _print_comparison(comparison: "RunComparison") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *(Path(run).name or run for run in comparison.runs))
    for name, values in comparison.settings.items():
        table.add_row(name.replace("_", "-"), *("" if value is None else str(value) for value in values))
    table.add_section()
    for name, scores in comparison.scores.items():
        if any(score is not None for score in scores):
            table.add_row(name.replace("_", " "), *("" if score is None else f"{score:.2%}" for score in scores))
    table.add_row("loss", *("" if loss is None else f"{loss:.3f}" for loss in comparison.losses))
    seconds = comparison.train_seconds
    table.add_row("training seconds", *("" if each is None else f"{each:,.0f}" for each in seconds))
    Console().print(table)


def _print_sweep(report: "SweepReport") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("option", "value", "kNN accuracy", "against the base")
    for row in report.rows:
        shown = "failed" if math.isnan(row.mean) else f"{row.mean:.2%}"
        value = "" if row.value is None else str(row.value)
        difference = 100 * (row.mean - report.rows[0].mean)
        against = "" if row.value is None or math.isnan(difference) else f"{difference:+.2f} points"
        table.add_row(row.name.replace("_", "-"), value, shown, against)
    effects = Table("option", "moves the result by")
    for name, effect in report.effects().items():
        effects.add_row(name.replace("_", "-"), f"{100 * effect:.2f} points")
    console = Console()
    console.print(table)
    console.print(effects)
    if len(report.rows[0].accuracies) > 1:
        console.print(f"Seeds of one setting lie up to {100 * report.seed_spread():.2f} points apart.")
