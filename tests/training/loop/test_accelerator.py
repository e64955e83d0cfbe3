"""What a GPU would stumble over, found without one: on torch's `meta` device any look at a value is an error."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.training.loop.devices import failures_explained, torch_settings
from imagekin.training.loop.trainer import pretrain
from imagekin.training.models.encoders import Normalisation, build_encoder
from imagekin.training.objectives.base import DeviceData, Setup, TrainingBatch
from imagekin.training.objectives.classifier import CrossEntropy
from imagekin.training.objectives.registry import OBJECTIVES, find_objective
from imagekin.training.options import resolve_settings
from imagekin.training.settings import TrainSettings
from imagekin.training.views.views import PRESETS, Views, _change

NORMALISATION = Normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
# The size of what these make depends on what they find, so the CPU has to wait once a step.
WAITING = {"n-pairs", "deepcluster"}


class MetaGenerator(torch.Generator):
    """Draws nothing, anywhere but on the CPU."""

    device = torch.device("meta")


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - WAITING))
def test_no_step_waits_for_the_device(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown to this device
    mixup = 0.0 if objective == "joint" else 0.4  # the joint objective refuses it
    settings = TrainSettings("photos", tmp_path, objective=objective, permutations=8, queue_size=32, mixup=mixup)
    views = Views.named("photos", 32, NORMALISATION)
    encoder = build_encoder("tiny", 32)
    built = find_objective(objective).build(Setup(settings, views, encoder, encoder.feature_dim, 5, 40)).to("meta")
    encoder.to("meta").to(memory_format=torch.channels_last)
    data = DeviceData(torch.empty(40, 3, 32, 32, dtype=torch.uint8, device="meta"), labels(40), 5)
    draws = MetaGenerator()
    rows = built.pick(labels(16), draws)
    inputs = built.make_inputs(TrainingBatch(*data.take(rows), rows, draws))
    loss = built.loss(encoder(inputs.images).float(), inputs.targets)
    loss.backward()  # type: ignore[no-untyped-call]
    built.after_step(encoder)
    assert loss.device.type == "meta"


@pytest.mark.parametrize("preset", PRESETS)
def test_no_view_waits_for_the_device(preset: str) -> None:
    views = Views.named(preset, 32, NORMALISATION)
    images = torch.empty(8, 3, 40, 40, dtype=torch.uint8, device="meta")
    views(images, MetaGenerator())
    kept = views._constants(images.device)
    views(images, MetaGenerator())
    assert views._constants(images.device) is kept  # copied there once, not for every batch


def test_changing_all_and_taking_some_is_changing_some() -> None:
    draws = torch.Generator().manual_seed(0)
    views, amount = torch.rand(9, 3, 4, 4, generator=draws), torch.rand(9, generator=draws)
    chosen = torch.rand(9, generator=draws) < 0.5

    def change(some: Tensor, by: Tensor) -> Tensor:
        return some * by.view(-1, 1, 1, 1)

    expected = torch.where(chosen.view(-1, 1, 1, 1), change(views, amount), views)
    torch.testing.assert_close(_change(views.clone(), chosen, amount, change), expected)
    nothing = torch.zeros(9, dtype=torch.bool)
    torch.testing.assert_close(_change(views.clone(), nothing, amount, change), views)


def test_missing_labels_are_found_before_the_epoch() -> None:
    objective = CrossEntropy(Views.named("none", 8, NORMALISATION), 4, 2)
    data = DeviceData(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, -1]), 2)
    with pytest.raises(InvalidArgumentError, match="without a label"):
        objective.begin_epoch(build_encoder("tiny", 8), data, 0)


@pytest.mark.usefixtures("unexported")
def test_a_compiled_encoder_trains_as_the_plain_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the code generator, which takes half a minute; the graph is taken and run as it is on a GPU.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    given = {"limit": 2, "batch_size": 20, "epochs": 2, "device": "cpu", "precision": "float32", "test": "digits"}
    reports = [
        pretrain(resolve_settings("digits", tmp_path / str(compiled), {**given, "compile": compiled}, resume=False))
        for compiled in (False, True)
    ]
    assert reports[0].loss == pytest.approx(reports[1].loss, rel=1e-5)


def test_too_little_memory_and_a_failing_compiler_are_one_line(tmp_path: Path) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    settings = TrainSettings("photos", tmp_path, compile=True)
    device = torch.device("cpu")
    small = pytest.raises(FailedPreconditionError, match="--batch-size 256; lower it")
    with small, failures_explained(settings, device):
        raise torch.OutOfMemoryError("CUDA out of memory")
    broken = BackendCompilerFailed(print, RuntimeError("no compiler\nat all"), None)
    refused = pytest.raises(FailedPreconditionError, match="leave out --compile")
    with refused as caught, failures_explained(settings, device):
        raise broken
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="a bug"), failures_explained(settings, device):
        raise RuntimeError("a bug")


def test_what_a_gpu_run_changes_in_torch_is_put_back(tmp_path: Path) -> None:
    with torch_settings(TrainSettings("photos", tmp_path), torch.device("cpu")):
        assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


def labels(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64, device="meta")
