"""The commands `imagekin evaluate` and `imagekin export`: options in, a table or one JSON line out."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from imagekin.command_options import AsJson, with_options
from imagekin.training.evaluation.settings import AllowOverlap, JudgeSettings, Near

if TYPE_CHECKING:
    from imagekin.encoder.metadata import Metadata
    from imagekin.training.data.arrays import Split
    from imagekin.training.data.images import ImageSet

ROWS = {
    "knn_accuracy": ("kNN accuracy", ".2%"),
    "linear_accuracy": ("linear probe accuracy", ".2%"),
    "knn_macro_accuracy": ("kNN accuracy, mean over classes", ".2%"),
    "linear_macro_accuracy": ("linear probe accuracy, mean over classes", ".2%"),
    "head_accuracy": ("linear head's accuracy", ".2%"),
    "head_ece": ("linear head's calibration error", ".2%"),
    "head_count": ("test images of the head's classes", ",d"),
    "head_unknown_count": ("test images of other classes", ",d"),
    "head_min_confidence": ("the head's bound of confidence", ".3f"),
    "head_known_rejected": ("images of its classes below it", ".2%"),
    "head_unknown_rejected": ("images of other classes below it", ".2%"),
    "head_unknown_auroc": ("AUROC of other classes, linear head", ".4f"),
    "unknown_count": ("test images of unknown classes", ",d"),
    "knn_unknown_auroc": ("AUROC of unknown classes, nearest neighbour", ".4f"),
    "knn_min_similarity": ("bound of similarity to the nearest", ".3f"),
    "knn_known_rejected": ("known images rejected by the nearest", ".2%"),
    "knn_unknown_rejected": ("unknown images rejected by the nearest", ".2%"),
    "linear_unknown_auroc": ("AUROC of unknown classes, linear probe", ".4f"),
    "linear_min_confidence": ("bound of the probe's confidence", ".3f"),
    "linear_known_rejected": ("known images rejected by the probe", ".2%"),
    "linear_unknown_rejected": ("unknown images rejected by the probe", ".2%"),
    "min_confidence": ("bound of confidence for unknown images", ".3f"),
    "rejected": ("held-out images of known classes below it", ".2%"),
    "knn_ece": ("calibration error, kNN", ".2%"),
    "knn_ece_scaled": ("… with a fitted temperature", ".2%"),
    "linear_ece": ("calibration error, linear probe", ".2%"),
    "linear_ece_scaled": ("… with a fitted temperature ", ".2%"),
    "knn_corrupted": ("kNN accuracy, corrupted images", ".2%"),
    "linear_corrupted": ("linear probe accuracy, corrupted", ".2%"),
    "knn_mce": ("mCE of kNN against the baseline", ".3f"),
    "linear_mce": ("mCE of the probe against the baseline", ".3f"),
    "recall_at_1": ("recall@1", ".2%"),
    "map_at_r": ("MAP@R", ".2%"),
    "onnx_max_abs_diff": ("largest difference, ONNX and torch", ".1e"),
    "onnx_knn_agreement": ("same nearest neighbour", ".2%"),
    "knn_agreement": ("same nearest-neighbour answer", ".2%"),
    "float_share": ("left in float32, of the layers", ".0%"),
    "sample_count": ("held-out images", ",d"),
    "file_bytes": ("bytes", ",d"),
    "parent_bytes": ("bytes of the original", ",d"),
    "train_count": ("training images", ",d"),
    "test_count": ("test images", ",d"),
    "test_copies": ("test images that are training images, too", ",d"),
    "test_near_copies": ("test images that nearly are training images", ",d"),
    "test_left_out": ("test images left out of the scores", ",d"),
    "class_count": ("classes", ",d"),
    "embeddings_per_second": ("embeddings per second", ",.0f"),
}
"""Heading and format of each figure, in the order in which they are shown; what is not there is left out."""


@with_options
def evaluate_command(
    model: Annotated[Path, typer.Argument(help="The model artifact, an .onnx file.", show_default=False)],
    test: Annotated[
        str, typer.Option(help="Labelled images to ask about; the model must not have seen them.", show_default=False)
    ],
    train: Annotated[
        str,
        typer.Option(
            help="Labelled images that are the neighbours and train the linear probe: as for train. Only few-shot "
            "tasks and a model's own head do without.",
            show_default=False,
        ),
    ] = "",
    *,
    label_from: Annotated[
        str,
        typer.Option(
            metavar="folder|parent|none|column:NAME|REGEX",
            help="What names an image's class, as for train: its folders (and tables), its own folder only, nothing, a"
            " column of tables, or the group of a regular expression that is searched in its path.",
        ),
    ] = "folder",
    settings: JudgeSettings,
    as_json: AsJson = False,
) -> None:
    """Score any model artifact: kNN, linear probe, retrieval and its own head, through ONNX Runtime as it is served."""
    from imagekin.encoder.artifact import read_metadata
    from imagekin.training.evaluation.judge import judge

    metadata = read_metadata(model)
    queries = _load(test, metadata, "test", label_from)
    gallery = _load(train, metadata, "train", label_from) if train else None
    scores = judge(model, gallery, queries, settings)
    figures = {"model": str(model), "space": metadata.space, "dim": metadata.dim, **scores}
    _show(f"{model.name} on {queries.name}", figures, as_json=as_json)


def export_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|MODEL.onnx", help="The training run's folder, or an artifact to convert.", show_default=False
        ),
    ],
    int8: Annotated[bool, typer.Option("--int8", help="Write the model's int8 twin, for CPUs.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Write the model's float16 twin, for GPUs.")] = False,
    head: Annotated[
        Literal["none", "linear"],
        typer.Option(help="linear: fit a linear head to the training images, by which the model classifies."),
    ] = "none",
    images: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Images to convert an artifact by, to check it on, or to fit its head to.",
            show_default=False,
        ),
    ] = "",
    data: Annotated[str, typer.Option(help="The run's training images, if they have moved.", show_default=False)] = "",
    test: Annotated[str, typer.Option(help="Its test images, if they have moved.", show_default=False)] = "",
    near: Near = False,
    allow_overlap: AllowOverlap = False,
    page: Annotated[
        bool, typer.Option("--report/--no-report", help="Also write RUN/report.html where there are test images.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Export a run's last checkpoint to its model.onnx, checked against torch on real images and scored.

    With --int8 or --fp16, write a twin of lower precision beside the model, checked against the model. With --head
    linear and an artifact, write MODEL-linear.onnx, which classifies as well.
    """
    from imagekin.errors import InvalidArgumentError

    if int8 and fp16:
        raise InvalidArgumentError("give either --int8 or --fp16", field="int8")
    if head != "none" and (int8 or fp16):
        raise InvalidArgumentError("fit the head first (imagekin export … --head linear): twins keep it", field="head")
    if int8 or fp16:
        _reduce(run, "int8" if int8 else "float16", images, data, test, as_json=as_json)
        return
    if head != "none" and run.is_file():
        _add_head(run, images, as_json=as_json)
        return
    if images or run.is_file():
        raise InvalidArgumentError(
            "an artifact is exported anew with --int8, --fp16 or --head linear, and --images SOURCE"
        )
    from imagekin.training.export.export import export_run

    report = export_run(
        run, data=data, test_data=test, page=page, head=head == "linear", near=near, allow_overlap=allow_overlap
    )
    _show(f"{report.model} written", {**report.to_json(), "model": str(report.model)}, as_json=as_json)


def _reduce(
    source: Path, precision: Literal["int8", "float16"], images: str, data: str, test: str, *, as_json: bool
) -> None:
    from imagekin.encoder.artifact import read_metadata
    from imagekin.errors import InvalidArgumentError
    from imagekin.training.export.twins import reduce_artifact, reduce_run, split_images, twin_path

    if source.is_file():
        if not images:
            raise InvalidArgumentError("name images like those to be served with --images SOURCE", field="images")
        calibration, held_out = split_images(_load(images, read_metadata(source), "all"))
        report = reduce_artifact(source, twin_path(source, precision), precision, calibration, held_out)
    else:
        if images:
            raise InvalidArgumentError("a run knows its images; --images is for an artifact", field="images")
        report = reduce_run(source, precision, data=data, test=test)
    _show(f"{report.model} written", report.to_json(), as_json=as_json)


def _add_head(model: Path, images: str, *, as_json: bool) -> None:
    from imagekin.encoder.artifact import read_metadata
    from imagekin.errors import InvalidArgumentError
    from imagekin.training.export.artifact_head import add_head, head_path

    if not images:
        raise InvalidArgumentError("name labelled images to fit the head to with --images SOURCE", field="images")
    report = add_head(model, _load(images, read_metadata(model), "train"), head_path(model))
    _show(f"{report.model} written", report.to_json(), as_json=as_json)
    if report.min_confidence is not None and not as_json:
        print(
            f"classify --method linear --min-confidence {report.min_confidence} calls {report.rejected:.1%} of "
            "images of known classes unknown, and most others"
        )


def _load(spec: str, metadata: "Metadata", split: "Split", label_from: str = "folder") -> "ImageSet":
    """Load images as the model is served them; `split` applies where the source has one."""
    from imagekin.training.data.images import has_split, load_images
    from imagekin.training.data.published import resolve_data

    root = os.environ.get("IMAGEKIN_DATA_ROOT")
    spec = resolve_data(spec, Path(root) if root else None)
    part = split if has_split(spec, label_from) else "all"
    return load_images(spec, split=part, preprocess=metadata.preprocess, label_from=label_from)


def _show(title: str, figures: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, (label, pattern) in ROWS.items():
        if (value := figures.get(name)) is not None:
            table.add_row(label, format(value, pattern))
    tasks = figures.get("few_shot")
    for name, task in tasks.items() if isinstance(tasks, dict) else ():
        table.add_row(f"few-shot {name}", f"{task['accuracy']:.2%} ± {task['standard_error']:.2%}")
    Console().print(table)
