"""Define the options of `imagekin train`, which are also those of `torchrun -m imagekin.training`.

Nothing here imports torch until the options are known to be good.
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from imagekin.errors import InvalidArgumentError
from imagekin.machine import is_first
from imagekin.training.data.published import resolve_data
from imagekin.training.data.storage import DataOn
from imagekin.training.settings import (
    CONFIG_FILE,
    Gather,
    LossForm,
    Mining,
    OptimiserName,
    Precision,
    Resize,
    SamplerName,
    TrainSettings,
    recommended,
)

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="What to train on: a folder of class folders, a .tar(.gz) of one, `digits`; or cifar10, cifar100, mnist, "
        "fashion-mnist: by name below --data-root, or the path of one, as torchvision stores it.",
    ),
]


def train_command(
    data: DataArgument = "",
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder that the run is written to.")] = Path("run"),
    objective: Annotated[
        str | None,
        typer.Option(
            help="What to minimise. With labels: supcon, sincere, mixup-supcon, supmoco, triplet, n-pairs, "
            "cross-entropy, self-distillation. Without: simclr, moco, rotation, jigsaw, context, exemplar, deepcluster."
        ),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="The network: tiny, resnet18, resnet50 or strokes.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the encoder's input in pixels.")] = None,
    crop_from: Annotated[int | None, typer.Option(help="Side at which training images are kept for cropping.")] = None,
    resize: Annotated[Resize | None, typer.Option(help="How an image becomes a square.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; 0 exports random weights.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    num_views: Annotated[int | None, typer.Option(help="Views of each image.")] = None,
    views: Annotated[
        str | None,
        typer.Option(help="How views are drawn: supcon, simclr, mild, gentle, photos, strokes, characters or cutout."),
    ] = None,
    show_views: Annotated[
        Path | None,
        typer.Option(metavar="PICTURE", help="Write a picture of views as they would be drawn, and train nothing."),
    ] = None,
    optimiser: Annotated[OptimiserName | None, typer.Option(help="The optimiser.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Decay of the weights.")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="Epochs during which the rate rises.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Temperature of the contrastive loss.")] = None,
    projection_dim: Annotated[
        int | None, typer.Option(help="Size of the vectors that the loss compares; 0 compares the features.")
    ] = None,
    sampler: Annotated[
        SamplerName | None, typer.Option(help="shuffle: every image once an epoch; pk: P classes × K images a batch.")
    ] = None,
    images_per_class: Annotated[
        int | None, typer.Option(help="K of --sampler pk; P is the batch size divided by K.")
    ] = None,
    rotations_as_classes: Annotated[
        bool | None,
        typer.Option(
            "--rotations-as-classes/--no-rotations-as-classes",
            help="Add the images in three more rotations, each a class of its own.",
        ),
    ] = None,
    mirrors_as_classes: Annotated[
        bool | None,
        typer.Option(
            "--mirrors-as-classes/--no-mirrors-as-classes",
            help="Add the images (with --rotations-as-classes each rotation) mirrored, each a class of its own.",
        ),
    ] = None,
    loss_form: Annotated[
        LossForm | None, typer.Option(help="SupCon's mean over positives: outside the logarithm or inside.")
    ] = None,
    max_positives: Annotated[
        int | None, typer.Option(help="Positives of an anchor that SupCon counts at most; 0 is all.")
    ] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Label smoothing of cross-entropy.")] = None,
    mixup: Annotated[
        float | None, typer.Option(help="Mix images, with this α; for cross-entropy and mixup-supcon.")
    ] = None,
    margin: Annotated[float | None, typer.Option(help="Margin of the triplet loss.")] = None,
    mining: Annotated[Mining | None, typer.Option(help="Which triplets of a batch count.")] = None,
    queue_size: Annotated[int | None, typer.Option(help="Keys that moco and supmoco remember.")] = None,
    teacher_momentum: Annotated[
        float | None, typer.Option(help="Momentum of moco's and self-distillation's second encoder.")
    ] = None,
    distillation: Annotated[
        float | None, typer.Option(help="Weight of the teacher's answers in self-distillation.")
    ] = None,
    permutations: Annotated[int | None, typer.Option(help="Classes of jigsaw.")] = None,
    normalise_tiles: Annotated[
        bool | None,
        typer.Option(
            "--normalise-tiles/--no-normalise-tiles", help="Jigsaw's tiles all have the same brightness and contrast."
        ),
    ] = None,
    surrogate_classes: Annotated[int | None, typer.Option(help="Images that exemplar tells apart.")] = None,
    clusters: Annotated[int | None, typer.Option(help="Clusters of deepcluster.")] = None,
    chunk_size: Annotated[
        int | None, typer.Option(help="Gradient caching: views that the encoder sees at a time; 0 is all.")
    ] = None,
    gather: Annotated[
        Gather | None,
        typer.Option(help="torchrun: contrastive losses compare the vectors of all processes, or local ones only."),
    ] = None,
    sync_batchnorm: Annotated[
        bool | None,
        typer.Option("--sync-batchnorm/--no-sync-batchnorm", help="torchrun: BatchNorm over all processes."),
    ] = None,
    compile_encoder: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Let torch compile the encoder; pays in long runs on a GPU."),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Export a running mean of the weights with this decay; 0 exports the last weights."),
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Longest gradient; 0 is no limit.")] = None,
    online_knn: Annotated[
        int | None, typer.Option(help="Log kNN accuracy on training images every so many epochs; 0 is never.")
    ] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard/--no-tensorboard", help="Also write RUN/tensorboard.")
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", envvar="IMAGEKIN_DATA_ROOT", help="Folder of published data sets; nothing is downloaded."
        ),
    ] = None,
    data_on: Annotated[
        DataOn | None,
        typer.Option(
            help="Where decoded images are kept: on the device, in a memory-mapped cache (decoded once, kept for later "
            "runs), or auto: in the cache if they need more than a third of the free memory."
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The cache; ~/.cache/imagekin by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="auto: bfloat16 where it is native.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; 0 leaves torch's choice. 1 on a busy machine.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Start from a torchvision state dict, a RUN or a checkpoint.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most so many images of each class.")] = None,
    test: Annotated[
        str | None, typer.Option(metavar="DATA", help="Held-out data, scored at the end and never used to choose.")
    ] = None,
    checkpoint_seconds: Annotated[float | None, typer.Option(help="Write a checkpoint this often.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in RUN.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in RUN.")] = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write RUN/report.html where there are test images.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
) -> None:
    """Train an encoder and leave RUN/model.onnx behind, exported and checked.

    Options that are not given follow the data: strokes of 16 pixels for `digits`, small natural images for CIFAR,
    photos of 64 pixels and 100 epochs for anything else.
    """
    given = {
        "objective": objective,
        "encoder": encoder,
        "image_size": image_size,
        "crop_from": crop_from,
        "resize": resize,
        "epochs": epochs,
        "batch_size": batch_size,
        "num_views": num_views,
        "views": views,
        "optimiser": optimiser,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup_epochs": warmup_epochs,
        "temperature": temperature,
        "projection_dim": projection_dim,
        "sampler": sampler,
        "images_per_class": images_per_class,
        "rotations_as_classes": rotations_as_classes,
        "mirrors_as_classes": mirrors_as_classes,
        "loss_form": loss_form,
        "max_positives": max_positives,
        "label_smoothing": label_smoothing,
        "mixup": mixup,
        "margin": margin,
        "mining": mining,
        "queue_size": queue_size,
        "teacher_momentum": teacher_momentum,
        "distillation": distillation,
        "permutations": permutations,
        "normalise_tiles": normalise_tiles,
        "surrogate_classes": surrogate_classes,
        "clusters": clusters,
        "chunk_size": chunk_size,
        "gather": gather,
        "sync_batchnorm": sync_batchnorm,
        "compile": compile_encoder,
        "ema": ema,
        "clip_norm": clip_norm,
        "online_knn": online_knn,
        "tensorboard": tensorboard,
        "data_on": data_on,
        "cache_dir": cache_dir,
        "seed": seed,
        "device": device,
        "precision": precision,
        "threads": threads,
        "weights": weights,
        "limit": limit,
        "test": resolve_data(test, data_root) if test else test,
        "checkpoint_seconds": checkpoint_seconds,
    }
    if resume and overwrite:
        raise InvalidArgumentError("--resume and --overwrite exclude each other", field="resume")
    settings = resolve_settings(resolve_data(data, data_root), out, given, resume=resume)
    level = logging.WARNING if is_first() else logging.ERROR
    logging.basicConfig(format="imagekin train: %(message)s", level=level, stream=sys.stderr)

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
    """Lay the options given (those not None) over the saved settings of a run that goes on, or over the defaults.

    Args:
        data: what to train on; may be empty for a run that goes on.
        out: the run's folder.
        given: options by the names of `TrainSettings`.
        resume: whether to start from the settings in `out`.

    Raises:
        InvalidArgumentError: no data were named, or an option is out of range.
    """
    options = {name: value for name, value in given.items() if value is not None}
    if resume and (out / CONFIG_FILE).exists():
        base = dataclasses.replace(TrainSettings.load(out), out=out)
        return dataclasses.replace(base, **(options | ({"data": data} if data else {})))
    if not data:
        raise InvalidArgumentError(
            "name what to train on: a folder of class folders, a .tar(.gz), or `digits`", field="data"
        )
    return dataclasses.replace(recommended(data, out, options.get("objective", "supcon")), **options)


def summary(report: Mapping[str, Any]) -> str:
    """Return what the command says at its end when it is not asked for JSON."""
    lines = [f"model            {report['model']} (checked: max |Δ| {report['onnx_max_abs_diff']:.1e})"]
    if report["epochs"]:
        lines.append(
            f"trained          {report['epochs']} epochs of {report['images']:,} images in "
            f"{report['train_seconds']:.0f} s, {report['images_per_second']:,.0f} images/s, loss {report['loss']:.3f}"
        )
    if "knn_accuracy" in report:
        lines.append(f"kNN accuracy     {report['knn_accuracy']:.2%} of {report['test_count']:,} held-out images")
        lines.append(f"linear accuracy  {report['linear_accuracy']:.2%}")
    return "\n".join(lines)
