"""An option that the chosen objective would ignore is refused, and the table that says so is the code's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imagekin.errors import InvalidArgumentError
from imagekin.training.loop.seeds import generator
from imagekin.training.loop.sweep import sweep
from imagekin.training.models.encoders import Normalisation, build_encoder
from imagekin.training.objective_options import HEEDED
from imagekin.training.objectives.base import Setup, TrainingBatch
from imagekin.training.objectives.registry import OBJECTIVES
from imagekin.training.options import resolve_settings
from imagekin.training.settings import LABELLED, TrainSettings
from imagekin.training.views.views import Views

SIZE, IMAGES, CLASSES = 16, 8, 2
# Heeded by the loop, not by the objectives themselves.
LOOP = {"rotations_as_classes", "mirrors_as_classes"}


class Watched:
    """Settings that note what is read."""

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.settings, name)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_table_names_what_an_objective_reads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    drawn: set[str] = set()
    draw = Views.draw

    def noted(self: Views, images: Tensor, draws: torch.Generator) -> Tensor:
        drawn.add("views")
        return draw(self, images, draws)

    monkeypatch.setattr(Views, "draw", noted)
    base = TrainSettings(data="digits", out=tmp_path, objective=name, image_size=SIZE, permutations=4, queue_size=8)
    settings: Any = Watched(base)
    encoder = build_encoder("tiny", SIZE)
    views = Views.named("supcon", SIZE, Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    objective = OBJECTIVES[name].build(Setup(settings, views, encoder, encoder.feature_dim, CLASSES, IMAGES))
    rows = torch.arange(IMAGES)
    images = torch.randint(256, (IMAGES, 3, SIZE, SIZE), dtype=torch.uint8)
    inputs = objective.make_inputs(TrainingBatch(images, rows % CLASSES, rows, generator(0, "test")))
    objective.loss(encoder(inputs.images), inputs.targets)
    heeded = {option for option, objectives in HEEDED.items() if name in objectives} - LOOP
    # Joint reads mixup only to refuse it.
    read = settings.read - ({"mixup"} if name == "joint" else set())
    assert (read & HEEDED.keys()) | drawn == heeded


def test_only_objectives_with_labels_take_turned_images_for_classes() -> None:
    for option in LOOP:
        assert HEEDED[option] == LABELLED
    assert tuple(name for name, objective in OBJECTIVES.items() if objective.needs_labels) == LABELLED


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (
            {"objective": "cross-entropy", "temperature": 0.1},
            "--temperature does nothing for --objective cross",
        ),
        ({"objective": "moco", "num_views": 4}, "--num-views"),
        ({"objective": "jigsaw", "views": "mild"}, "--views"),
        ({"label_smoothing": 0.1}, "--label-smoothing does nothing for --objective supcon; it is for cross-entropy"),
        ({"images_per_class": 2}, "--sampler pk"),
    ],
)
def test_an_option_that_does_nothing_is_refused(given: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        resolve_settings("digits", tmp_path, given, resume=False)


def test_a_sweep_varies_nothing_that_has_no_effect(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="--margin does nothing"):
        sweep(TrainSettings(data="digits", out=tmp_path), {"margin": (0.1, 0.2)})


def test_what_is_left_to_the_defaults_is_never_refused(tmp_path: Path) -> None:
    for name in OBJECTIVES:
        for data in ("digits", "photos"):
            assert resolve_settings(data, tmp_path, {"objective": name}, resume=False).objective == name
