"""Define the options of `imagekin train`, which are also those of `torchrun -m imagekin.training`.

Nothing here imports torch before the options have been checked.
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from imagekin.command_options import AsJson, Given, with_options
from imagekin.counting import counted
from imagekin.errors import InvalidArgumentError
from imagekin.machine import is_first
from imagekin.training.data.published import resolve_data
from imagekin.training.objective_options import refuse_ignored
from imagekin.training.presets import fine_tuning, is_named, recommended
from imagekin.training.settings import CONFIG_FILE, IMAGES, RECORDS, TrainSettings

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="What to train on: a folder of class folders, a .tar(.gz) of one, `digits`; or cifar10, cifar100, mnist, "
        "fashion-mnist: by name below --data-root, or the path of one, as torchvision stores it.",
    ),
]


@with_options
def train_command(
    data: DataArgument = "",
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="Folder that the run is written to.")] = Path(
        "run"
    ),
    *,
    given: Given[TrainSettings],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in RUN.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in RUN.")] = False,
    as_json: AsJson = False,
    show_views: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURE",
            help="Write a picture of views as they would be drawn, and train nothing.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="IMAGEKIN_DATA_ROOT",
            help="Folder of published data sets; nothing is downloaded.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report/--no-report",
            help="Write RUN/report.html where there are test images.",
            rich_help_panel=RECORDS,
        ),
    ] = True,
) -> None:
    """Train an encoder and leave RUN/model.onnx behind, exported and checked.

    Options that are not given follow the data: strokes of 16 pixels for `digits`, small natural images for CIFAR,
    photos of 64 pixels and 100 epochs for anything else. An encoder by name, which has learned from other images
    already, is fine-tuned at its own size for 20 epochs.
    """
    if resume and overwrite:
        raise InvalidArgumentError("--resume and --overwrite exclude each other", field="resume")
    chosen = dict(given.values)
    if chosen.get("test"):
        chosen["test"] = resolve_data(chosen["test"], data_root)
    settings = resolve_settings(resolve_data(data, data_root), out, chosen, resume=resume)
    level = logging.WARNING if is_first() else logging.ERROR
    logging.basicConfig(format="imagekin train: %(message)s", level=level, stream=sys.stderr)
    if is_first():
        logging.getLogger("imagekin.training").setLevel(logging.INFO)  # labels and splits, before the work begins

    if show_views is not None:
        from imagekin.training.views.sheet import save_view_sheet

        save_view_sheet(settings, show_views)
        print(json.dumps({"picture": str(show_views)}) if as_json else f"views            {show_views}")
        return

    from imagekin.training.loop.trainer import pretrain_part

    done = pretrain_part(settings, resume=resume, overwrite=overwrite, page=report)
    if done is not None:
        figures = done.to_json()
        print(json.dumps(figures) if as_json else summary(figures))


def resolve_settings(data: str, out: Path, given: Mapping[str, Any], *, resume: bool) -> TrainSettings:
    """Combine the options given (those not None) with a resumed run's saved settings, or with the defaults.

    Args:
        data: the training data; may be empty for a resumed run.
        out: the run's folder.
        given: options by the names of `TrainSettings`.
        resume: whether to start from the settings in `out`.

    Raises:
        InvalidArgumentError: no data were named, or an option is out of range.
    """
    options = {name: value for name, value in given.items() if value is not None}
    if resume and (out / CONFIG_FILE).exists():
        base = dataclasses.replace(TrainSettings.load(out), out=out)
        refuse_ignored(base.objective, options)
        return dataclasses.replace(base, **(options | ({"data": data} if data else {})))
    if not data:
        raise InvalidArgumentError(
            "name what to train on: a folder of class folders, a .tar(.gz), or `digits`", field="data"
        )
    encoder = options.get("encoder", "")
    objective = options.get("objective", "joint" if is_named(encoder) else "supcon")
    refuse_ignored(objective, options)
    base = dataclasses.replace(recommended(data, out, objective), objective=objective)
    if is_named(encoder):
        named = dataclasses.replace(base, encoder=encoder, weights=options.get("weights"))
        base = fine_tuning(named, options.get("image_size", 0))
    settings = dataclasses.replace(base, **options)
    if "images_per_class" in options and settings.sampler != "pk":
        raise InvalidArgumentError("--images-per-class belongs to --sampler pk; add it", field="images_per_class")
    return settings


def summary(report: Mapping[str, Any]) -> str:
    """Return the closing lines of the command when it does not answer in JSON."""
    lines = [f"model            {report['model']} (checked: max |Δ| {report['onnx_max_abs_diff']:.1e})"]
    if report["epochs"]:
        lines.append(
            f"trained          {counted(report['epochs'], 'epoch')} of {counted(report['images'], 'image')} in "
            f"{report['train_seconds']:.0f} s, {report['images_per_second']:,.0f} images/s, loss {report['loss']:.3f}"
        )
    if "knn_accuracy" in report:
        lines.append(f"kNN accuracy     {report['knn_accuracy']:.2%} of {report['test_count']:,} held-out images")
        lines.append(f"linear accuracy  {report['linear_accuracy']:.2%}")
        lines.append(
            f"mean of classes  kNN {report['knn_macro_accuracy']:.2%}, linear {report['linear_macro_accuracy']:.2%}"
        )
        if report.get("test_left_out"):
            lines.append(f"left out         {report['test_left_out']:,} test images that are training images, too")
        elif same := report.get("test_copies", 0) + (report.get("test_near_copies") or 0):
            lines.append(f"counted          {same:,} test images that are training images, too")
    return "\n".join(lines)
