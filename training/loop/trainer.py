"""Pretraining: data → views → encoder → objective → step → log → checkpoint, and at the end the model artifact.

    report = pretrain(TrainSettings(data="digits", out=Path("run")))

leaves in the run's folder `config.json` (the settings), `metrics.jsonl` (one object per epoch), `checkpoint.pt`
(everything needed to resume), `model.onnx` and `report.json` (its scores). `resume=True` continues a run that was
killed; on a CPU it ends with exactly the weights of an uninterrupted run.

Processes that torchrun started each call `pretrain_part`. Only the first one writes to the run's folder, exports and
scores. The others read the checkpoint there, so all of them need access to the folder.
"""

import copy
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import TextIO

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imagekin.encoder.metadata import JSON
from imagekin.errors import FailedPreconditionError, ImagekinError
from imagekin.progress import progress
from imagekin.training.data.identity import Identity
from imagekin.training.data.images import ImageSet
from imagekin.training.data.run_data import check_batches, check_labels, device_data, load_data
from imagekin.training.data.sampling import ClassSampler, Sampler, ShuffleSampler
from imagekin.training.export.export import RunReport, export_run
from imagekin.training.loop import checkpoint, provenance
from imagekin.training.loop.checkpoint import Checkpoint, Position
from imagekin.training.loop.devices import (
    failures_explained,
    find_device,
    gains_by_bfloat16,
    to_device,
    torch_settings,
)
from imagekin.training.loop.distributed import (
    average,
    average_gradients,
    check_batch_size,
    even_part,
    gather_rows,
    own_part,
    process_group,
    raise_together,
    rank,
    share_buffers,
)
from imagekin.training.loop.first_weights import start_encoder
from imagekin.training.loop.gradient_cache import backward_in_chunks
from imagekin.training.loop.monitoring import check_collapse, online_knn, write_tensorboard
from imagekin.training.loop.optimiser import build_optimiser, learning_rate, set_learning_rate
from imagekin.training.loop.run_folder import last_loss, open_run
from imagekin.training.loop.seeds import derived_seed, generator
from imagekin.training.loop.time_plan import plan_epochs, planned_before, time_steps
from imagekin.training.models.recalibrate_batchnorm import recalibrate_norms
from imagekin.training.models.running_mean import Follower
from imagekin.training.models.sync_batchnorm import synchronise_norms
from imagekin.training.objectives.base import DeviceData, Inputs, Objective, Setup, TrainingBatch
from imagekin.training.objectives.registry import find_objective
from imagekin.training.settings import CHECKPOINT_FILE, METRICS_FILE, TrainSettings
from imagekin.training.views.views import Views, check_views

_FINITE_CHECK_STEPS = 20
"""On an accelerator the loss is only looked at so often, because looking means waiting for it."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """Results of a training.

    Attributes:
        run: the exported model and its scores.
        position: progress at its end.
        images_per_second: training speed, with each image counted once, not each view; 0 without an epoch.
        seconds: wall time of this call, with loading, export and scoring.
        loss: mean of the last epoch; None without an epoch.
        image_count: training images.
        class_count: their classes.
        left_out: how many files are not among the training images, see `ImageSet.left_out_json`.
    """

    run: RunReport
    position: Position
    images_per_second: float
    seconds: float
    loss: float | None
    image_count: int
    class_count: int
    left_out: Mapping[str, JSON]

    def to_json(self) -> dict[str, JSON]:
        """Return one flat JSON object: the run's report, the model's path and the figures of training."""
        return {
            **self.run.to_json(),
            "model": str(self.run.model),
            "epochs": self.position.epoch,
            "steps": self.position.step,
            "loss": self.loss,
            "images": self.image_count,
            "classes": self.class_count,
            **self.left_out,
            "images_per_second": round(self.images_per_second, 1),
            "train_seconds": round(self.position.total_seconds, 3),
            "seconds": round(self.seconds, 3),
        }


def pretrain(
    settings: TrainSettings, *, resume: bool = False, overwrite: bool = False, page: bool = False
) -> TrainReport:
    """Train an encoder, export it, and score it where there are test images.

    Args:
        settings: of the run.
        resume: continue the run in `settings.out`, which must have been started with the same settings.
        overwrite: delete the run in `settings.out`.
        page: also write `report.html`, where there are test images.

    Raises:
        InvalidArgumentError: the data or a setting cannot be used; the message names it.
        NotFoundError: the data or the weights are not there.
        FailedPreconditionError: there is a run in the folder already, the loss is no longer a number, the exported
            model differs from the encoder, or this is not the first of several processes (see `pretrain_part`).
    """
    report = pretrain_part(settings, resume=resume, overwrite=overwrite, page=page)
    if report is None:
        raise FailedPreconditionError("only the first of several processes has a report; call pretrain_part there")
    return report


def pretrain_part(
    settings: TrainSettings, *, resume: bool = False, overwrite: bool = False, page: bool = False
) -> TrainReport | None:
    """Run `pretrain` as one of the processes that torchrun started, which share every batch.

    Alone, or as the first one, it returns the report; the others return None once the training is over.

    Raises:
        ElsewhereError: another process failed, and raises the reason.
    """
    started = time.monotonic()
    device = find_device(settings.device)
    with ExitStack() as stack:
        with process_group(device):
            trainer, train, test = _train(stack, settings, device, started, resume=resume, overwrite=overwrite)
            if rank():
                return None
        # From here on only the first process works, and no process waits for another.
        same_size = settings.training_preprocess() == settings.preprocess()
        report = export_run(settings.out, train=train if same_size else None, test=test, page=page)
    position = trainer.position
    images = trainer.sampler.batches_per_epoch * trainer.sampler.batch_size * position.epoch
    return TrainReport(
        run=report,
        position=position,
        images_per_second=images / position.total_seconds if position.total_seconds else 0.0,
        seconds=time.monotonic() - started,
        loss=trainer.last_loss,
        image_count=len(train),
        class_count=len(train.class_names),
        left_out=train.left_out_json(),
    )


def _train(
    stack: ExitStack,
    settings: TrainSettings,
    device: torch.device,
    started: float,
    *,
    resume: bool,
    overwrite: bool,
) -> tuple["Trainer", ImageSet, ImageSet | None]:
    """Train to the end; return the trainer, the training images, and the test images if any.

    `stack` holds the lock on the run's folder, in the first process, and torch's settings.
    """
    objective_class = find_objective(settings.objective)
    check_views(settings)
    check_batch_size(settings.batch_size)
    train, test = load_data(settings)
    check_labels(train, settings, needed=objective_class.needs_labels)
    check_batches(train, settings)
    if settings.minutes:
        before = planned_before(settings) if resume else None
        scored = 0 if test is None else len(train) + len(test)
        epochs = before or _plan(settings, train, device, objective_class, started, scored)
        settings = dataclasses.replace(settings, epochs=epochs)
    saved = _enter_run(stack, settings, device, Identity.of(train), resume=resume, overwrite=overwrite)
    stack.enter_context(torch_settings(settings, device))
    with failures_explained(settings, device):
        trainer = Trainer(settings, train, device, objective_class, saved)
        trainer.run()
    trainer.save()
    return trainer, train, test


def _plan(
    settings: TrainSettings,
    train: ImageSet,
    device: torch.device,
    objective_class: type[Objective],
    started: float,
    scored: int,
) -> int:
    """Return how many epochs fit into the settings' minutes, by the speed of a trainer that is thrown away."""
    with torch_settings(settings, device), failures_explained(settings, device):
        trial = Trainer(settings, train, device, objective_class, None)
        trial.encoder.train()
        trial.objective.begin_epoch(trial.encoder, trial.data, 0)
        rows = next(iter(trial.sampler.batches(0)))
        seconds = time_steps(lambda: trial.step(rows, settings.learning_rate), device)
    # Several processes plan alike, by the slowest.
    slowest = gather_rows(torch.tensor([seconds, time.monotonic() - started], device=device).view(1, 2)).amax(0)
    seconds, elapsed = slowest.tolist()
    return plan_epochs(
        settings,
        step_seconds=seconds,
        steps=trial.sampler.batches_per_epoch,
        elapsed=elapsed,
        batch=trial.sampler.batch_size,
        scored=scored,
    )


def _enter_run(
    stack: ExitStack, settings: TrainSettings, device: torch.device, data: Identity, *, resume: bool, overwrite: bool
) -> Checkpoint | None:
    """Lock the run's folder in the first process; return the checkpoint to resume from in each, or None."""
    saved: Checkpoint | None = None
    failure: ImagekinError | None = None
    if rank() == 0:
        try:
            saved = stack.enter_context(open_run(settings, resume=resume, overwrite=overwrite, data=data))
            provenance.record(settings.out, device)
        except ImagekinError as error:
            failure = error
    raise_together(failure, device)
    path = settings.out / CHECKPOINT_FILE
    if rank() and resume and path.exists():
        saved = checkpoint.load(path)
    steps = gather_rows(torch.tensor([-1 if saved is None else saved.position.step], device=device))
    if (steps != steps[0]).any():
        raise FailedPreconditionError(f"the processes do not see the same {path}; --out must be a folder they share")
    return saved


class Trainer:
    """State of one run: the model, the data, and the progress.

    Args:
        settings: of the run.
        train: the training images.
        device: where to train.
        objective_class: what to minimise.
        saved: the checkpoint to resume from; None starts from the beginning.
    """

    def __init__(
        self,
        settings: TrainSettings,
        train: ImageSet,
        device: torch.device,
        objective_class: type[Objective],
        saved: Checkpoint | None,
    ) -> None:
        torch.manual_seed(derived_seed(settings.seed, "weights"))
        self.settings = settings
        self.device = device
        self.class_names = train.class_names
        self.data_name = train.name
        self.encoder, self.normalisation = start_encoder(settings, train, saved)
        self.views = Views.named(settings.views, settings.view_side, self.normalisation)
        self.data = device_data(settings, train, device)
        feature_dim, class_count = self.encoder.feature_dim, self.data.class_count * self.data.copies
        setup = Setup(settings, self.views, self.encoder, feature_dim, class_count, len(self.data))
        self.objective = objective_class.build(setup)
        if settings.sync_batchnorm and not settings.freeze_batchnorm:
            synchronise_norms(self.encoder)
        self.encoder.to(device).to(memory_format=torch.channels_last)
        self.average = Follower(self.encoder, settings.ema) if settings.ema else None
        self._forward: Callable[[Tensor], Tensor] = torch.compile(self.encoder) if settings.compile else self.encoder
        self.objective.to(device)
        self.optimiser: Optimizer = build_optimiser(settings, self.encoder, self.objective)
        self.sampler = _build_sampler(settings, self.data)
        self.autocast = settings.precision == "bfloat16" or (
            settings.precision == "auto" and gains_by_bfloat16(self.encoder, device)
        )
        self.position = Position()
        self.last_loss: float | None = last_loss(settings.out)
        self._saved_at = time.monotonic()
        if saved is not None:
            self._restore(saved)

    def run(self) -> None:
        """Train from the current position to the last epoch."""
        settings, position = self.settings, self.position
        self.encoder.train()
        self.objective.train()
        per_epoch = self.sampler.batches_per_epoch
        steps = settings.epochs * per_epoch
        warmup = min(round(settings.warmup_epochs * per_epoch), steps // 2)
        path = os.devnull if rank() else settings.out / METRICS_FILE
        with progress("training", steps) as advance, open(path, "a", buffering=1, encoding="utf-8") as metrics:
            advance(position.step)
            while position.epoch < settings.epochs:
                clock = time.perf_counter() - position.seconds
                loss_sum = torch.tensor(position.loss_sum, dtype=torch.float64, device=self.device)
                if position.batch == 0:
                    share_buffers(self.encoder)
                    self.objective.begin_epoch(self.encoder, self.data, position.epoch)
                    share_buffers(self.objective)
                for rows in islice(self.sampler.batches(position.epoch), position.batch, None):
                    rate = learning_rate(position.step, steps, warmup, settings.learning_rate)
                    loss_sum += self.step(rows, rate)
                    position.batch += 1
                    position.step += 1
                    position.images += len(rows)
                    if self.device.type == "cpu" or position.step % _FINITE_CHECK_STEPS == 0:
                        self._check_finite(loss_sum)
                    advance(1, note=f"epoch {position.epoch + 1}/{settings.epochs}")
                    if time.monotonic() - self._saved_at > settings.checkpoint_seconds and position.batch < per_epoch:
                        self._check_finite(loss_sum)
                        position.loss_sum, position.seconds = loss_sum.item(), time.perf_counter() - clock
                        self.save()
                self._check_finite(loss_sum)
                self._end_epoch(metrics, loss_sum.item() / per_epoch, rate, time.perf_counter() - clock)
        if settings.epochs and not self.objective.sees_whole_images:
            recalibrate_norms(self.encoder, self.data, self.views)
            if self.average is not None:
                recalibrate_norms(self.average.copy, self.data, self.views)

    def step(self, rows: Tensor, rate: float) -> Tensor:
        """Take one step on the images at `rows` (int64 [B], on the CPU) and return its loss, detached."""
        rows = to_device(own_part(rows), self.device)
        # The first process draws the same as a single one would; the others need different draws.
        purpose = f"step of process {rank()}" if rank() else "step"
        draws = generator(self.settings.seed, purpose, self.position.step, device=self.device)
        rows = self.objective.pick(rows, draws)
        batch = TrainingBatch(*self.data.take(rows), rows, draws)
        inputs = self.objective.make_inputs(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss = average(self._backward(inputs))
        modules = (self.encoder, self.objective)
        average_gradients(modules)
        if self.settings.clip_norm:
            parameters = [parameter for module in modules for parameter in module.parameters()]
            torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        set_learning_rate(self.optimiser, rate)
        self.optimiser.step()
        self.objective.after_step(self.encoder)
        if self.average is not None:
            self.average.follow(self.encoder)
        return loss

    def _backward(self, inputs: Inputs) -> Tensor:
        """Compute the gradients of one step and return its loss, detached."""

        def autocast() -> torch.autocast:
            return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

        def loss_of(features: Tensor) -> Tensor:
            return self.objective.loss(features.float(), inputs.targets)

        if 0 < self.settings.chunk_size < len(inputs.images):
            return backward_in_chunks(self.encoder, inputs.images, self.settings.chunk_size, loss_of, autocast)
        with autocast():
            features = self._forward(inputs.images)
        loss = loss_of(features)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def save(self) -> None:
        """Write the checkpoint, in the first process only."""
        self._saved_at = time.monotonic()
        if rank():
            return
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint.save(
            Checkpoint(
                settings=self.settings,
                normalisation=self.normalisation,
                class_names=self.class_names,
                data_name=self.data_name,
                position=self.position,
                encoder=self.encoder.state_dict(),
                objective=self.objective.state_dict(),
                optimiser=self.optimiser.state_dict(),
                rng=rng,
                average={} if self.average is None else self.average.copy.state_dict(),
            ),
            self.settings.out / CHECKPOINT_FILE,
        )

    def _end_epoch(self, metrics: TextIO, loss: float, rate: float, seconds: float) -> None:
        """Log the epoch, move to the next one, and write a checkpoint unless one was written just before."""
        position = self.position
        self.last_loss = loss
        line: dict[str, float | int] = {
            "epoch": position.epoch + 1,
            "step": position.step,
            "loss": loss,
            "learning_rate": rate,
            "images_per_second": round(position.images / seconds, 1),
            "seconds": round(seconds, 4),
        }
        if self.settings.online_knn and (position.epoch + 1) % self.settings.online_knn == 0:
            share_buffers(self.encoder)
            accuracy = online_knn(self._as_served(), self.data, self.views, self.settings.seed)
            line |= {} if accuracy is None else {"online_knn": accuracy}
        failure: ImagekinError | None = None
        if rank() == 0:
            metrics.write(json.dumps(line) + "\n")
            if self.settings.tensorboard:
                write_tensorboard(self.settings.out, line)
            try:
                check_collapse(self.settings, self.objective.chance_loss(self.sampler.batch_size))
            except FailedPreconditionError as error:
                failure = error
        raise_together(failure, self.device)
        position.epoch += 1
        position.batch = position.images = 0
        position.loss_sum = position.seconds = 0.0
        position.total_seconds += seconds
        if time.monotonic() - self._saved_at > self.settings.checkpoint_seconds / 10:
            self.save()

    def _as_served(self) -> nn.Module:
        """Return the encoder that would be served if the run ended now, without changing the one in training."""
        encoder = self.encoder if self.average is None else self.average.copy
        if self.objective.sees_whole_images:
            return encoder
        settled = copy.deepcopy(encoder)
        recalibrate_norms(settled, self.data, self.views)
        return settled

    def _check_finite(self, loss_sum: Tensor) -> None:
        if not math.isfinite(loss_sum.item()):
            raise FailedPreconditionError(
                f"the loss is no number any more in epoch {self.position.epoch + 1}, step {self.position.step}: "
                "try a lower --learning-rate, more --warmup-epochs or --precision float32"
            )

    def _restore(self, saved: Checkpoint) -> None:
        self.objective.load_state_dict(saved.objective)
        self.optimiser.load_state_dict(saved.optimiser)
        if self.average is not None:
            self.average.copy.load_state_dict(saved.average)
        self.position = saved.position
        torch.set_rng_state(saved.rng["cpu"])
        if self.device.type == "cuda" and "cuda" in saved.rng:
            torch.cuda.set_rng_state(saved.rng["cuda"], self.device)


def _build_sampler(settings: TrainSettings, data: DeviceData) -> Sampler:
    """Build the sampler that the settings name."""
    if settings.sampler == "pk":
        labels = data.all_labels().cpu()
        return ClassSampler(labels, settings.batch_size, settings.images_per_class, settings.seed)
    # A set smaller than a batch makes one batch, as far as the processes can divide it evenly.
    return ShuffleSampler(len(data), min(settings.batch_size, even_part(len(data))), settings.seed)
