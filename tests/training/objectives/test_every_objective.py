"""Every objective trains, exports the encoder alone, and goes on bit for bit after it was stopped in an epoch."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imagekin.encoder.artifact import read_metadata
from imagekin.encoder.metadata import Metadata
from imagekin.errors import InvalidArgumentError
from imagekin.training.export.export import ExportReport
from imagekin.training.loop import checkpoint
from imagekin.training.loop.checkpoint import load_run
from imagekin.training.loop.trainer import Trainer, pretrain
from imagekin.training.models.encoders import Backbone, Normalisation, build_encoder
from imagekin.training.objectives.registry import OBJECTIVES
from imagekin.training.settings import CHECKPOINT_FILE, MODEL_FILE, TrainSettings


def quick(out: Path, **changes: Any) -> TrainSettings:
    """Return settings of a run of a second on a few images, whose folder stands beside the run's."""
    data = out.parent / "data"
    draws = np.random.default_rng(0)
    for number in range(60 * (not data.exists())):
        path = data / f"class{number % 10}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    small: dict[str, Any] = {"permutations": 8, "clusters": 6, "surrogate_classes": 20, "queue_size": 32}
    small |= {"image_size": 16, "epochs": 2, "batch_size": 20, "threads": 1, "precision": "float32"}
    return TrainSettings(data=str(data), out=out, **(small | changes))


def leaves(run: Path) -> list[tuple[str, Tensor]]:
    saved = checkpoint.load(run / CHECKPOINT_FILE)
    parts = {"encoder": saved.encoder, "objective": saved.objective, "average": saved.average}
    found = [(f"{part}.{name}", value) for part, state in parts.items() for name, value in sorted(state.items())]
    for number, state in sorted(saved.optimiser["state"].items()):
        found += [(f"{number}.{name}", value) for name, value in sorted(state.items()) if isinstance(value, Tensor)]
    return found


def same(one: Path, other: Path) -> bool:
    first, second = leaves(one), leaves(other)
    return [name for name, _ in first] == [name for name, _ in second] and all(
        torch.equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True)
    )


def interrupted(settings: TrainSettings, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `settings`, stopped after so many steps, then to the end."""
    plain = Trainer.step

    def step(self: Trainer, rows: Tensor, rate: float) -> Tensor:
        if self.position.step == steps:
            raise KeyboardInterrupt
        return plain(self, rows, rate)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            pretrain(dataclasses.replace(settings, checkpoint_seconds=0.0))
    assert 0 < checkpoint.load(settings.out / CHECKPOINT_FILE).position.step <= steps
    pretrain(settings, resume=True)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_trains_and_hands_its_encoder_alone_to_the_export(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Backbone, Metadata]] = []

    def export(encoder: Backbone, _: Normalisation, metadata: Metadata, *rest: object, **head: object) -> ExportReport:
        assert head == {"head": None}
        given.append((encoder, metadata))
        return ExportReport(0.0, 1.0, 0, 0.0)

    monkeypatch.setattr("imagekin.training.export.export.export", export)
    report = pretrain(quick(tmp_path / "run", objective=objective, epochs=1))
    assert report.loss is not None
    ((encoder, metadata),) = given
    assert encoder.state_dict().keys() == build_encoder("tiny", 16).state_dict().keys()
    assert metadata.objective == objective
    assert metadata.dim == 128
    assert not metadata.class_names


def test_the_artifact_of_a_student_is_the_encoder(tmp_path: Path) -> None:
    pretrain(quick(tmp_path / "run", objective="self-distillation", epochs=1))
    metadata = read_metadata(tmp_path / "run" / MODEL_FILE)
    assert (metadata.objective, metadata.dim, metadata.class_names) == ("self-distillation", 128, ())


@pytest.mark.usefixtures("unexported")
@pytest.mark.parametrize("objective", ["supmoco", "self-distillation", "deepcluster", "mixup-supcon", "jigsaw"])
def test_stopped_within_an_epoch_it_goes_on_bit_for_bit(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(quick(tmp_path / "whole", objective=objective))
    interrupted(quick(tmp_path / "stopped", objective=objective), 4, monkeypatch)
    assert same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.usefixtures("unexported")
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_online_knn_judges_what_would_be_served_and_leaves_the_training_alone(
    ema: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[dict[str, Tensor]] = []

    def judge(encoder: torch.nn.Module, *_: object) -> None:
        judged.append({name: value.clone() for name, value in encoder.state_dict().items()})

    monkeypatch.setattr("imagekin.training.loop.trainer.online_knn", judge)
    pretrain(quick(tmp_path / "plain", objective="jigsaw", ema=ema))
    pretrain(quick(tmp_path / "watched", objective="jigsaw", ema=ema, online_knn=1))
    assert same(tmp_path / "plain", tmp_path / "watched")
    assert len(judged) == 2
    served = load_run(tmp_path / "watched").encoder.state_dict()
    assert all(torch.equal(value, judged[-1][name]) for name, value in served.items())


@pytest.mark.usefixtures("unexported")
@pytest.mark.parametrize(
    "changes",
    [
        {
            **{"sampler": "pk", "images_per_class": 2, "rotations_as_classes": True, "mirrors_as_classes": True},
            **{"projection_dim": 0, "views": "characters", "num_views": 1},
        },
        {"sampler": "pk", "objective": "triplet", "mining": "semi-hard", "num_views": 1},
        {"objective": "cross-entropy", "mixup": 0.4, "label_smoothing": 0.1, "rotations_as_classes": True},
        {"loss_form": "in", "max_positives": 3, "num_views": 3},
        {"ema": 0.5, "clip_norm": 1.0, "optimiser": "lars", "chunk_size": 16, "online_knn": 1, "tensorboard": True},
    ],
)
def test_options_of_the_objectives_work_in_a_run_and_over_a_stop(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(quick(tmp_path / "whole", **changes))
    interrupted(quick(tmp_path / "stopped", **changes), 3, monkeypatch)
    assert same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "magic"}, "--sampler must be one of shuffle, pk"),
        (
            {"sampler": "pk", "batch_size": 10, "images_per_class": 4},
            "--batch-size must be a multiple of .* or give --sampler shuffle",
        ),
        ({"label_smoothing": 1.0}, "--label-smoothing must be at least 0 and below 1"),
        ({"ema": 1.0}, "--ema must be"),
        ({"distillation": 1.5}, "--distillation must be from 0 to 1"),
        ({"queue_size": 0}, "--queue-size must be at least 1"),
        ({"clusters": 1}, "--clusters must be at least 2"),
        ({"chunk_size": -1}, "--chunk-size must not be negative"),
        ({"margin": float("nan")}, "--margin must be a number"),
        ({"mining": "easy"}, "--mining must be one of"),
    ],
)
def test_a_value_out_of_range_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        quick(tmp_path, **changes)
