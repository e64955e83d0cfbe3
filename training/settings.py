"""What a training run is told: one frozen dataclass, saved as `config.json` in the run's folder.

Nothing here imports torch, so that the command line can show its help without waiting for it.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from imagekin.errors import InvalidArgumentError
from imagekin.training.data.published import published_name
from imagekin.training.data.storage import DataOn

Resize = Literal["squash", "crop", "pad"]
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

POSITIVE = ("image_size", "batch_size", "num_views", "images_per_class", "queue_size")
NOT_NEGATIVE = (
    *("limit", "epochs", "seed", "threads", "crop_from", "projection_dim", "max_positives", "chunk_size"),
    "online_knn",
)
LABELLED = (
    "supcon",
    "sincere",
    "mixup-supcon",
    "supmoco",
    "triplet",
    "n-pairs",
    "cross-entropy",
    "self-distillation",
)
"""Objectives that learn from labels."""
CHOICES = {
    "resize": Resize,
    "precision": Precision,
    "optimiser": OptimiserName,
    "sampler": SamplerName,
    "loss_form": LossForm,
    "mining": Mining,
    "gather": Gather,
    "data_on": DataOn,
}


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Every choice of one training run; the same settings and seed give the same weights on the same machine.

    Attributes:
        data: what to train on, see `imagekin.training.data.images.load_images`.
        out: the run's folder.
        test: held-out data, only scored at the end, never used to choose anything; empty when there is none.
        limit: use at most this many images of each class; 0 is all of them.
        objective: name of the objective, see `imagekin.training.objectives`.
        encoder: name of the encoder, see `imagekin.training.models.encoders`.
        image_size: side in pixels of the encoder's square input.
        crop_from: side in pixels at which training images are kept; random crops are cut from these. 0 is `image_size`.
        resize: how an image becomes a square, see `imagekin.encoder.metadata.Preprocess`.
        weights: a torchvision state dict, a run's folder or a checkpoint to start from.
        epochs: passes over the data; 0 exports the encoder as it was initialised.
        batch_size: images a step, each of which gives `num_views` views.
        num_views: views of each image.
        views: name of the preset that the views are drawn with, see `imagekin.training.views.views`.
        optimiser: `sgd` (Nesterov momentum 0.9), `adamw` or `lars`.
        learning_rate: peak of the schedule, for the batch size given.
        weight_decay: decay of the weights; biases and norms have none.
        warmup_epochs: epochs during which the rate rises linearly from zero; then it falls along a half cosine.
        temperature: of the contrastive loss.
        projection_dim: size of the vectors that the contrastive loss compares; 0 compares the features themselves.
        sampler: `shuffle` (every image once an epoch) or `pk` (classes × images_per_class in every batch).
        images_per_class: K of the pk sampler; the batch size must be a multiple of it.
        rotations_as_classes: every image is there in four rotations, each of which is a class of its own.
        mirrors_as_classes: every image, in every rotation, is there mirrored as well, likewise.
        loss_form: of SupCon: `out` (the mean over positives outside the logarithm) or `in`.
        max_positives: SupCon counts at most so many positives of an anchor, other views first; 0 is all.
        label_smoothing: of cross-entropy, 0 to below 1.
        mixup: α of the Beta distribution that images are mixed by; 0 is no mixing (1 in mixup-supcon).
        margin: of the triplet loss.
        mining: the triplets of a batch: `hard` or `semi-hard`.
        queue_size: keys that moco and supmoco remember.
        teacher_momentum: how much of itself a momentum encoder keeps each step.
        distillation: weight of the teacher's answers in self-distillation, 0 to 1.
        permutations: classes of jigsaw.
        normalise_tiles: jigsaw shows each tile at the same brightness and contrast, as its paper does.
        surrogate_classes: images that exemplar tells apart; all when there are fewer.
        clusters: of deepcluster.
        chunk_size: gradient caching: the encoder sees at most so many views at a time; 0 is all of a batch.
        gather: with several processes, a contrastive loss compares with the vectors of `all` of them, or with `local`
            ones only.
        compile: whether torch compiles the encoder: for a GPU, where the first steps take a minute and the others less.
        sync_batchnorm: with several processes, BatchNorm takes its statistics over all of them.
        ema: the exported encoder is a running mean of the weights that keeps so much of itself each step; 0 is none.
        clip_norm: longest gradient of all weights together; 0 is no limit.
        online_knn: log leave-one-out kNN accuracy on a sample of the training images every so many epochs; 0 is never.
        tensorboard: also write the metrics for TensorBoard.
        precision: of the encoder's forward pass; `auto` is bfloat16 where the device multiplies it natively.
        data_on: where decoded images are kept, see `imagekin.training.data.storage.Storage`.
        cache_dir: folder of the cache; None is the user's own.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        seed: of everything random.
        threads: CPU threads of torch; 0 leaves torch's choice (and OMP_NUM_THREADS) alone.
        checkpoint_seconds: a checkpoint is written at least this often, and at the end of an epoch once a tenth of
            this has passed.
    """

    data: str
    out: Path
    test: str = ""
    limit: int = 0
    objective: str = "supcon"
    encoder: str = "tiny"
    image_size: int = 32
    crop_from: int = 0
    resize: Resize = "crop"
    weights: Path | None = None
    epochs: int = 100
    batch_size: int = 256
    num_views: int = 2
    views: str = "supcon"
    optimiser: OptimiserName = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 5.0
    temperature: float = 0.1
    projection_dim: int = 128
    sampler: SamplerName = "shuffle"
    images_per_class: int = 4
    rotations_as_classes: bool = False
    mirrors_as_classes: bool = False
    loss_form: LossForm = "out"
    max_positives: int = 0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    margin: float = 0.2
    mining: Mining = "hard"
    queue_size: int = 4096
    teacher_momentum: float = 0.99
    distillation: float = 0.5
    permutations: int = 100
    normalise_tiles: bool = True
    surrogate_classes: int = 2000
    clusters: int = 100
    chunk_size: int = 0
    gather: Gather = "all"
    sync_batchnorm: bool = False
    compile: bool = False
    ema: float = 0.0
    clip_norm: float = 0.0
    online_knn: int = 0
    tensorboard: bool = False
    precision: Precision = "auto"
    data_on: DataOn = "auto"
    cache_dir: Path | None = None
    device: str = "auto"
    seed: int = 0
    threads: int = 0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Check each value; raises InvalidArgumentError that names the option."""
        _require(bool(self.data), "data", "name the images to train on")
        for name in POSITIVE:
            _require(getattr(self, name) >= 1, name, "must be at least 1")
        for name in NOT_NEGATIVE:
            _require(getattr(self, name) >= 0, name, "must not be negative")
        for name in ("weight_decay", "warmup_epochs", "checkpoint_seconds", "mixup", "margin", "clip_norm"):
            _require(0 <= getattr(self, name) < float("inf"), name, "must be a number of at least 0")
        for name in ("learning_rate", "temperature"):
            _require(0 < getattr(self, name) < float("inf"), name, "must be a number above 0")
        for name in ("label_smoothing", "teacher_momentum", "ema"):
            _require(0 <= getattr(self, name) < 1, name, "must be at least 0 and below 1")
        _require(0 <= self.distillation <= 1, "distillation", "must be from 0 to 1")
        for name in ("permutations", "clusters", "surrogate_classes"):
            _require(getattr(self, name) >= 2, name, "must be at least 2")
        divides = self.sampler != "pk" or self.batch_size % self.images_per_class == 0
        _require(divides, "batch_size", f"must be a multiple of --images-per-class {self.images_per_class}")
        _require(self.image_size >= 8, "image_size", "must be at least 8")
        _require(self.crop_from == 0 or self.crop_from >= self.image_size, "crop_from", "must be at least image-size")
        for name, kind in CHOICES.items():
            allowed = get_args(kind)
            _require(getattr(self, name) in allowed, name, f"must be one of {', '.join(allowed)}")

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


def recommended(data: str, out: Path, objective: str = "supcon") -> TrainSettings:
    """Return the settings that suit `data` and the objective on a CPU; the command's options are laid over them."""
    if data == "digits":
        # One thread: so little work gains little from a second one, and two that wait for each other lose tenfold on a
        # machine that is busy with other things.
        return TrainSettings(data=data, out=out, image_size=16, views="strokes", epochs=20, warmup_epochs=2, threads=1)
    published = published_name(Path(data))
    if published in ("mnist", "fashion-mnist"):
        views = "strokes" if published == "mnist" else "supcon"
        return TrainSettings(data=data, out=out, image_size=28, views=views, epochs=10, warmup_epochs=1)
    if published is not None:
        return for_small_images(data, out, objective)
    # Meant for a few thousand photos: about ten minutes for three thousand on two cores. Name fewer epochs for more.
    return TrainSettings(data=data, out=out, image_size=64, views="photos", epochs=100, warmup_epochs=2)


def for_small_images(data: str, out: Path, objective: str) -> TrainSettings:
    """Return the settings for CIFAR-like images and the tiny encoder.

    Chosen for each objective on held-out training images of CIFAR-10, see `bench/objectives.py`.
    """
    base = TrainSettings(
        data=data,
        out=out,
        objective=objective,
        image_size=32,
        # Milder views made supcon and cross-entropy better alike, by three points, where images and steps are few.
        views="gentle" if objective in LABELLED else "supcon",
        epochs=30,
        warmup_epochs=1,
        batch_size=128,
        # So short a run has no time to learn a head that is thrown away: features compared directly are better by far.
        projection_dim=0 if objective in LABELLED else 128,
        learning_rate=3e-3 if objective in (*LABELLED, "context", "deepcluster", "jigsaw") else 1e-3,
    )
    if objective == "jigsaw":
        return dataclasses.replace(base, permutations=24, normalise_tiles=False)
    if objective == "exemplar":
        return dataclasses.replace(base, surrogate_classes=500)
    if objective in ("moco", "supmoco"):
        # A long queue would hold most of a small set, in keys of an encoder that has long changed since. A short one is
        # made anew every few steps, so its encoder can follow fast.
        return dataclasses.replace(base, queue_size=512, teacher_momentum=0.9)
    if objective == "triplet":
        # The hardest triplets of a batch pull everything into one point at first (Schroff et al. 2015, section 3.2).
        return dataclasses.replace(base, mining="semi-hard", learning_rate=1e-3)
    return base


def _require(holds: bool, name: str, message: str) -> None:
    if not holds:
        option = name.replace("_", "-")
        raise InvalidArgumentError(f"--{option} {message}", field=name)
