"""Encoders by name are fine-tuned like any other: stopped, resumed, exported, and shown images as they want them."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from imagekin.encoder.artifact import read_metadata
from imagekin.encoder.metadata import Preprocess
from imagekin.errors import InvalidArgumentError
from imagekin.training.export.export import space_of
from imagekin.training.loop import time_plan, trainer
from imagekin.training.loop.checkpoint import load_run
from imagekin.training.loop.time_plan import plan_epochs
from imagekin.training.loop.trainer import pretrain
from imagekin.training.models.named import RANDOM
from imagekin.training.options import resolve_settings
from imagekin.training.settings import MODEL_FILE, TrainSettings
from tests.training.objectives.test_every_objective import interrupted, quick, same

ENCODER = "timm:test_efficientnet"


def tuning(out: Path, **changes: Any) -> TrainSettings:
    """Return settings of a fine-tuning of a second or two, at 64 pixels, of views of 32."""
    base = quick(out)
    given: dict[str, Any] = {"encoder": ENCODER, "weights": Path(RANDOM), "image_size": 64, "view_size": 32}
    given |= {"batch_size": 20, "epochs": 2, "threads": 1, "precision": "float32", "images_per_class": 2}
    return resolve_settings(base.data, out, given | changes, resume=False)


def space(run: Path) -> str:
    loaded = load_run(run)
    return space_of(loaded.encoder, loaded.normalisation)


def test_what_suits_an_encoder_by_name_comes_from_the_encoder(tmp_path: Path) -> None:
    settings = resolve_settings("photos", tmp_path / "run", {"encoder": "efficientnet-lite0"}, resume=False)
    assert settings.preprocess() == Preprocess(224, 224, "crop", "bicubic", crop_fraction=0.875)
    assert settings.training_preprocess() == Preprocess(256, 256, "crop", "bicubic")
    assert (settings.view_side, settings.objective, settings.freeze_batchnorm) == (160, "joint", True)
    assert (settings.freeze, settings.num_views, settings.sampler, settings.mining) == (3, 1, "pk", "semi-hard")
    fixed = resolve_settings("photos", tmp_path / "run", {"encoder": "timm:vit_tiny_patch16_224"}, resume=False)
    assert (fixed.image_size, fixed.view_side) == (224, 224)
    nothing_known = {"encoder": "efficientnet-lite0", "weights": Path(RANDOM)}
    fresh = resolve_settings("photos", tmp_path / "run", nothing_known, resume=False)
    assert (fresh.freeze, fresh.freeze_batchnorm, fresh.layer_decay) == (0, False, 1.0)
    other = {"encoder": ENCODER, "objective": "simclr", "epochs": 3, "image_size": 96}
    simclr = resolve_settings("photos", tmp_path / "run", other, resume=False)
    assert (simclr.objective, simclr.num_views, simclr.epochs, simclr.image_size) == ("simclr", 2, 3, 96)


def test_an_encoder_by_name_is_trained_exported_and_served_at_its_own_size(tmp_path: Path) -> None:
    report = pretrain(tuning(tmp_path / "run"))
    metadata = read_metadata(tmp_path / "run" / MODEL_FILE)
    assert metadata.preprocess == Preprocess(64, 64, "crop", "bicubic", crop_fraction=0.95)
    assert metadata.space == space(tmp_path / "run") == report.run.space
    assert (metadata.objective, metadata.dim) == ("joint", 256)
    start = tuning(tmp_path / "start", epochs=0)
    pretrain(start)
    assert space(start.out) != metadata.space


@pytest.mark.usefixtures("unexported")
@pytest.mark.parametrize("changes", [{}, {"freeze": 2, "layer_decay": 0.5, "freeze_batchnorm": False}], ids=str)
def test_stopped_within_an_epoch_it_goes_on_bit_for_bit(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(tuning(tmp_path / "whole", **changes))
    interrupted(tuning(tmp_path / "stopped", **changes), 4, monkeypatch)
    assert same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.usefixtures("unexported")
def test_a_file_of_weights_is_where_it_starts_and_what_became_of_it_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    theirs = timm.create_model("test_efficientnet")
    torch.save({"state_dict": {f"module.{name}": value for name, value in theirs.state_dict().items()}}, tmp_path / "w")
    with caplog.at_level(logging.WARNING):
        pretrain(tuning(tmp_path / "run", weights=tmp_path / "w", epochs=0))
    loaded = load_run(tmp_path / "run").encoder.state_dict()
    assert all(
        torch.equal(loaded[f"body.{name}"], value) for name, value in theirs.state_dict().items() if "class" not in name
    )
    assert "0 missing, 2 ignored (classifier.weight, classifier.bias)" in caplog.text


@pytest.mark.usefixtures("unexported")
def test_a_run_is_a_start_for_another_run(tmp_path: Path) -> None:
    pretrain(tuning(tmp_path / "one", epochs=1))
    pretrain(tuning(tmp_path / "two", epochs=0, weights=tmp_path / "one"))
    assert space(tmp_path / "two") == space(tmp_path / "one")


def test_views_of_a_size_that_the_encoder_cannot_take_are_refused(tmp_path: Path) -> None:
    settings = tuning(tmp_path / "run", encoder="timm:vit_tiny_patch16_224", view_size=32)
    with pytest.raises(InvalidArgumentError, match="does not run on views of 32 pixels"):
        pretrain(settings)


@pytest.mark.usefixtures("unexported")
def test_minutes_decide_the_epochs_and_a_resumed_run_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tuning(tmp_path / "run", minutes=0.5)
    monkeypatch.setattr(time_plan, "_EXPORT_SECONDS", 0.0)
    # 30 seconds, of which loading took some: 3 steps of 3 seconds are an epoch.
    monkeypatch.setattr(trainer, "time_steps", lambda step, device: (step(), 2.9)[1])
    report = pretrain(settings)
    assert report.position.epoch in (2, 3)
    assert TrainSettings.load(settings.out).epochs == report.position.epoch
    monkeypatch.setattr(trainer, "time_steps", lambda step, device: 0.001)
    again = pretrain(settings, resume=True)
    assert again.position.step == report.position.step
    # What was tried to measure the speed leaves no trace.
    plain = dataclasses.replace(settings, out=tmp_path / "plain", epochs=report.position.epoch, minutes=0)
    pretrain(plain)
    assert space(plain.out) == space(settings.out)


@pytest.mark.parametrize(("minutes", "scored", "epochs"), [(10, 0, 9), (10, 1000, 8), (1, 0, 1), (0.1, 0, 1)])
def test_what_is_scored_at_the_end_is_planned_for(minutes: float, scored: int, epochs: int, tmp_path: Path) -> None:
    settings = dataclasses.replace(quick(tmp_path / "run"), minutes=minutes, image_size=64, view_size=32, num_views=1)
    # An epoch of a minute; a view of 32 pixels takes 0.06 s to train on, an image of 64 pixels 0.04 s to embed.
    planned = plan_epochs(settings, step_seconds=6.0, steps=10, elapsed=10.0, batch=100, scored=scored)
    assert planned == epochs


def test_a_plan_never_measures_longer_than_a_few_steps() -> None:
    taken: list[int] = []
    assert time_plan.time_steps(lambda: taken.append(1), torch.device("cpu")) >= 0
    assert np.sum(taken) == time_plan.WARM_STEPS + time_plan.TIMED_STEPS
