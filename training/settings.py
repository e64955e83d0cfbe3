"""Settings of a training run: one frozen dataclass, saved as `config.json` in the run's folder.

Nothing here imports torch, so that the command line can show its help without waiting for it.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imagekin.encoder.metadata import Interpolation, Preprocess, Resize
from imagekin.errors import InvalidArgumentError
from imagekin.settings import check, option
from imagekin.training.data.storage import DataOn

Precision = Literal["auto", "float32", "bfloat16"]
OptimiserName = Literal["sgd", "adamw", "lars"]
SamplerName = Literal["shuffle", "pk"]
LossForm = Literal["out", "in"]
Mining = Literal["hard", "semi-hard"]
Gather = Literal["all", "local"]

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "checkpoint.pt"
MODEL_FILE = "model.onnx"
REPORT_FILE = "report.json"
DETAILS_FILE = "details.json"
PAGE_FILE = "report.html"
PROVENANCE_FILE = "provenance.json"

LABELLED = (
    "supcon",
    "sincere",
    "mixup-supcon",
    "supmoco",
    "triplet",
    "n-pairs",
    "cross-entropy",
    "joint",
    "self-distillation",
)
"""Objectives that learn from labels."""
# Titles of the groups in `imagekin train --help`; the options that matter most stand above the groups.
IMAGES = "Images and views"
OPTIMISER = "Optimisation"
CONTRASTIVE = "Contrastive objectives"
OTHERS = "Other objectives"
MACHINE = "Machine"
RECORDS = "Records of the run"
FINE_TUNING = "Fine-tuning"
FOLLOWS = "follows data and objective"
FOLLOWS_ENCODER = "follows the encoder"


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """All settings of one training run; with the same seed they give the same weights on the same machine.

    Attributes:
        data: what to train on, see `imagekin.training.data.images.load_images`.
        out: the run's folder.
    """

    data: str
    out: Path
    test: str = option("", "Held-out data, scored at the end and never used to choose.", metavar="DATA")
    near: bool = option(
        False,
        "Also look for near-duplicates of training images among the test images: copies that were compressed, resized "
        "or recoloured, not cropped or mirrored.",
        panel=IMAGES,
    )
    allow_overlap: bool = option(False, "Let the scores count test images that are training images, too.", panel=IMAGES)
    limit: int = option(0, "Use at most so many images of each class; 0 is all of them.", panel=IMAGES, least=0)
    objective: str = option(
        "supcon",
        "What to minimise. With labels: supcon, sincere, mixup-supcon, supmoco, triplet, n-pairs, cross-entropy, joint "
        "(cross-entropy and supcon), self-distillation. Without: simclr, moco, rotation, jigsaw, context, exemplar, "
        "deepcluster.",
        default_help="supcon, or joint for an encoder by name",
    )
    encoder: str = option(
        "tiny",
        "The network: tiny, resnet18, resnet50 or strokes, from nothing; or, to fine-tune, efficientnet-lite0 and what "
        "else `imagekin adopt` takes by name.",
    )
    image_size: int = option(32, "Side of the encoder's square input in pixels.", default_help=FOLLOWS, least=8)
    crop_from: int = option(
        0,
        "Side in pixels at which training images are kept; random crops are cut from these. 0 is the image size.",
        panel=IMAGES,
        least=0,
    )
    resize: Resize = option("crop", "How an image becomes a square.", panel=IMAGES)
    label_from: str = option(
        "folder",
        "What names an image's class: its folders (and tables), its own folder only (parent), nothing (none), a column"
        " of tables, or the group of a regular expression that is searched in its path.",
        metavar="folder|parent|none|column:NAME|REGEX",
        panel=IMAGES,
    )
    interpolation: Interpolation = option(
        "bilinear", "Filter of the resizing.", panel=IMAGES, default_help=FOLLOWS_ENCODER
    )
    crop_fraction: float = option(
        1.0,
        "Part of the square's sides that the finished encoder is shown; 0.875 is the middle 224 of 256 pixels.",
        panel=IMAGES,
        default_help=FOLLOWS_ENCODER,
        above=0,
        most=1,
    )
    view_size: int = option(
        0,
        "Side in pixels of the views that are trained on; 0 is the image size. Smaller ones train faster.",
        panel=IMAGES,
        default_help=FOLLOWS_ENCODER,
        least=0,
    )
    weights: Path | None = option(
        None,
        "Start from the weights of a file, a RUN or a checkpoint; `random` is none.",
        metavar="PATH",
        default_help="random, or an encoder by name's own",
    )
    minutes: float = option(
        0.0,
        "Plan epochs and schedule for so many minutes in all, by the speed of the first steps, instead of --epochs.",
        least=0.0,
    )
    epochs: int = option(100, "Passes over the data; 0 exports random weights.", default_help=FOLLOWS, least=0)
    batch_size: int = option(
        256, "Images a step, each of which gives --num-views views.", default_help=FOLLOWS, least=1
    )
    num_views: int = option(2, "Views of each image.", panel=IMAGES, least=1)
    views: str = option(
        "supcon",
        "How views are drawn: supcon, simclr, mild, gentle, photos, crops, strokes, characters, cutout or upright.",
        default_help=FOLLOWS,
    )
    optimiser: OptimiserName = option("adamw", "The optimiser; sgd has Nesterov momentum 0.9.", panel=OPTIMISER)
    learning_rate: float = option(
        1e-3, "Peak of the learning rate, for the batch size given.", default_help=FOLLOWS, above=0
    )
    weight_decay: float = option(0.05, "Decay of the weights; biases and norms have none.", panel=OPTIMISER, least=0.0)
    warmup_epochs: float = option(
        5.0,
        "Epochs during which the rate rises linearly from zero; then it falls along a half cosine.",
        panel=OPTIMISER,
        default_help=FOLLOWS,
        least=0.0,
    )
    freeze: int = option(
        0,
        "Leave the first stages of the encoder as they are: 1 is the stem, each further one a block of layers.",
        panel=FINE_TUNING,
        default_help=FOLLOWS_ENCODER,
        least=0,
    )
    layer_decay: float = option(
        1.0,
        "Factor of the learning rate from each stage of the encoder to the one before it.",
        panel=FINE_TUNING,
        default_help=FOLLOWS_ENCODER,
        above=0,
        most=1,
    )
    freeze_batchnorm: bool = option(
        False,
        "Keep BatchNorm's means and variances as they are; with small batches those of a large training are better.",
        panel=FINE_TUNING,
        default_help=FOLLOWS_ENCODER,
    )
    recompute: bool = option(
        False,
        "Gradient checkpointing: keep less of the forward pass and compute it again, where memory binds (timm).",
        panel=FINE_TUNING,
    )
    temperature: float = option(0.1, "Temperature of the contrastive loss.", panel=CONTRASTIVE, above=0)
    projection_dim: int = option(
        128,
        "Size of the vectors that the loss compares; 0 compares the features themselves.",
        panel=CONTRASTIVE,
        default_help=FOLLOWS,
        least=0,
    )
    sampler: SamplerName = option(
        "shuffle", "shuffle: every image once an epoch; pk: P classes × K images a batch.", panel=IMAGES
    )
    images_per_class: int = option(4, "K of --sampler pk; P is the batch size divided by K.", panel=IMAGES, least=1)
    rotations_as_classes: bool = option(
        False, "Add the images in three more rotations, each a class of its own.", panel=IMAGES
    )
    mirrors_as_classes: bool = option(
        False,
        "Add the images (with --rotations-as-classes each rotation) mirrored, each a class of its own.",
        panel=IMAGES,
    )
    loss_form: LossForm = option(
        "out", "SupCon's mean over positives: outside the logarithm or inside.", panel=CONTRASTIVE
    )
    max_positives: int = option(
        0,
        "Positives of an anchor that SupCon counts at most, other views first; 0 is all.",
        panel=CONTRASTIVE,
        least=0,
    )
    contrastive_weight: float = option(
        0.5, "Weight of supcon in the joint objective, beside cross-entropy's 1.", panel=OTHERS, least=0.0
    )
    label_smoothing: float = option(
        0.0, "Label smoothing of cross-entropy.", panel=OTHERS, default_help=FOLLOWS_ENCODER, least=0, below=1
    )
    mixup: float = option(
        0.0,
        "Mix images, with shares of a Beta distribution of this α; for cross-entropy and mixup-supcon (there 0 is 1).",
        panel=OTHERS,
        least=0.0,
    )
    margin: float = option(0.2, "Margin of the triplet loss.", panel=OTHERS, least=0.0)
    mining: Mining = option("hard", "Which triplets of a batch count.", panel=OTHERS, default_help=FOLLOWS)
    queue_size: int = option(
        4096, "Keys that moco and supmoco remember.", panel=CONTRASTIVE, default_help=FOLLOWS, least=1
    )
    teacher_momentum: float = option(
        0.99,
        "How much of itself the second encoder of moco, supmoco and self-distillation keeps each step.",
        panel=CONTRASTIVE,
        default_help=FOLLOWS,
        least=0,
        below=1,
    )
    distillation: float = option(
        0.5, "Weight of the teacher's answers in self-distillation.", panel=OTHERS, least=0, most=1
    )
    permutations: int = option(100, "Classes of jigsaw.", panel=OTHERS, default_help=FOLLOWS, least=2)
    normalise_tiles: bool = option(
        True,
        "Show each of jigsaw's tiles at the same brightness and contrast, as its paper does.",
        panel=OTHERS,
        default_help=FOLLOWS,
    )
    surrogate_classes: int = option(
        2000,
        "Images that exemplar tells apart; all when there are fewer.",
        panel=OTHERS,
        default_help=FOLLOWS,
        least=2,
    )
    clusters: int = option(100, "Clusters of deepcluster.", panel=OTHERS, least=2)
    chunk_size: int = option(
        0, "Gradient caching: views that the encoder sees at a time; 0 is all of a batch.", panel=MACHINE, least=0
    )
    gather: Gather = option(
        "all",
        "torchrun: contrastive losses compare the vectors of all processes, or local ones only.",
        panel=MACHINE,
    )
    sync_batchnorm: bool = option(False, "torchrun: BatchNorm takes its statistics over all processes.", panel=MACHINE)
    compile: bool = option(
        False,
        "Let torch compile the encoder; pays in long runs on a GPU, where the first steps take a minute.",
        panel=MACHINE,
    )
    ema: float = option(
        0.0,
        "Export a running mean of the weights that keeps so much of itself each step; 0 exports the last weights.",
        panel=OPTIMISER,
        least=0,
        below=1,
    )
    clip_norm: float = option(
        0.0, "Longest gradient of all weights together; 0 is no limit.", panel=OPTIMISER, least=0.0
    )
    online_knn: int = option(
        0,
        "Log leave-one-out kNN accuracy on a sample of the training images every so many epochs; 0 is never.",
        panel=RECORDS,
        least=0,
    )
    tensorboard: bool = option(False, "Also write the metrics for TensorBoard, to RUN/tensorboard.", panel=RECORDS)
    precision: Precision = option(
        "auto", "Of the encoder's forward pass; auto: bfloat16 where it is native and faster.", panel=MACHINE
    )
    data_on: DataOn = option(
        "auto",
        "Where decoded images are kept: on the device, in a memory-mapped cache (decoded once, kept for later runs), "
        "or auto: in the cache if they need more than a third of the free memory.",
        panel=MACHINE,
    )
    cache_dir: Path | None = option(None, "The cache; ~/.cache/imagekin by default.", metavar="DIR", panel=MACHINE)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    seed: int = option(0, "Seed of everything random.", least=0)
    threads: int = option(
        0,
        "CPU threads; 0 leaves torch's choice (and OMP_NUM_THREADS) alone. 1 on a busy machine.",
        panel=MACHINE,
        default_help=FOLLOWS,
        least=0,
    )
    checkpoint_seconds: float = option(
        60.0,
        "Write a checkpoint this often, and at the end of an epoch once a tenth of this has passed.",
        panel=RECORDS,
        least=0.0,
    )

    def __post_init__(self) -> None:
        """Check each value; raises InvalidArgumentError that names the option."""
        _require(bool(self.data), "data", "name the images to train on")
        check(self)
        divides = self.sampler != "pk" or self.batch_size % self.images_per_class == 0
        smaller = f"must be a multiple of --images-per-class {self.images_per_class}, or give --sampler shuffle"
        _require(divides, "batch_size", smaller)
        whole = self.crop_from == 0 or self.crop_from >= self.view_side
        _require(whole, "crop_from", "must be at least the side of the views")
        _require(self.view_size == 0 or self.view_size >= 8, "view_size", "must be 0 or at least 8")

    @property
    def view_side(self) -> int:
        """The side of the views that the encoder is trained on."""
        return self.view_size or self.image_size

    def preprocess(self) -> Preprocess:
        """Return how files become the finished encoder's input."""
        side, fraction = self.image_size, self.crop_fraction if self.resize == "crop" else 1.0
        return Preprocess(side, side, self.resize, self.interpolation, crop_fraction=fraction)

    def training_preprocess(self) -> Preprocess:
        """Return how files become training images: as the finished encoder's input, or whole where crops are cut."""
        if not self.crop_from:
            return self.preprocess()
        return Preprocess(self.crop_from, self.crop_from, self.resize, self.interpolation)

    def to_json(self) -> str:
        """Return the settings as a JSON object, indented, keys in the order above."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings with paths as strings, ready for JSON."""
        values = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainSettings":
        """Build settings from `to_dict`'s mapping; unknown or missing names raise InvalidArgumentError."""
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise InvalidArgumentError(f"{CONFIG_FILE} has settings unknown to this version: {', '.join(unknown)}")
        known = dict(values)
        try:
            known["out"] = Path(known["out"])
            for name in ("weights", "cache_dir"):
                known[name] = Path(known[name]) if known.get(name) else None
            return cls(**known)
        except (KeyError, TypeError) as error:
            raise InvalidArgumentError(f"{CONFIG_FILE} is incomplete or damaged: {error}") from error

    @classmethod
    def load(cls, run_dir: Path) -> "TrainSettings":
        """Read the settings of the run in `run_dir`; raises InvalidArgumentError when there are none."""
        path = run_dir / CONFIG_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidArgumentError(f"{run_dir} is no training run: {CONFIG_FILE} cannot be read") from error
        except ValueError as error:
            raise InvalidArgumentError(f"{path} is damaged: {error}") from error
        if not isinstance(values, dict):
            raise InvalidArgumentError(f"{path} is damaged: it holds no JSON object")
        return cls.from_dict(values)


def _require(holds: bool, name: str, message: str) -> None:
    if not holds:
        option = name.replace("_", "-")
        raise InvalidArgumentError(f"--{option} {message}", field=name)
