"""Gradient caching, several processes, LARS, and what is watched: each does what it says, to the last digits."""

import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from imagekin.errors import FailedPreconditionError
from imagekin.training.loop.gradient_cache import backward_in_chunks
from imagekin.training.loop.lars import LARS, TRUST
from imagekin.training.loop.monitoring import check_collapse
from imagekin.training.objectives.contrastive import contrastive_loss
from imagekin.training.settings import METRICS_FILE, TrainSettings

ROOT = Path(__file__).resolve().parents[3]

TWO_PROCESSES = """
import importlib, os, sys
import torch
from torch import nn
from imagekin.training.loop.distributed import average, average_gradients, gather, gather_rows, process_group, rank
from imagekin.training.objectives.contrastive import contrastive_loss
from imagekin.training.objectives.supcon import SupCon
from imagekin.training.settings import TrainSettings
from imagekin.training.models.sync_batchnorm import synchronise_norms

def threads():
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1

def gradients():
    found = [parameter.grad.clone() for parameter in encoder.parameters()]
    encoder.zero_grad()
    return found

def close(values, others):
    for value, other in zip(values, others, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-12)

torch.set_num_threads(1)
torch.manual_seed(0)
encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6)).double()
images, groups = torch.randn(8, 3, 8, 8).double(), torch.tensor([0, 1, 0, 2, 1, 2, 0, 2])
halves = torch.split(torch.arange(8), 4)

loss = contrastive_loss(encoder(images), groups, 0.1)
loss.backward()
alone = gradients()
# What the local loss comes to: the mean of both halves' own losses, the BatchNorm of each half its own, too.
local = sum(contrastive_loss(encoder(images[half]), groups[half], 0.1) for half in halves) / 2
local.backward()
apart = gradients()
before = threads()

with process_group(torch.device("cpu")):
    half = halves[rank()]
    for kind, expected, slopes in (("local", local, apart), ("all", loss, alone)):
        def pairs(vectors, groups, sources):
            return contrastive_loss(vectors, groups, 0.1)
        objective = SupCon(None, 6, 6, pairs, gathered=kind == "all")
        objective.head = nn.Identity()
        if kind == "all":
            synchronise_norms(encoder)
        value = objective.loss(encoder(images[half]), {"groups": groups[half], "sources": half})
        value.backward()
        average_gradients([encoder])
        close([average(value.detach())], [expected.detach()])
        close(gradients(), slopes)
    # Torch imports much at its leisure; what it imports here must not keep the group beyond its end.
    importlib.import_module("torch._dynamo")
assert threads() == before, "the group's threads outlive it"
print("equal")
"""


def test_two_processes_give_the_loss_and_gradient_of_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES],
            env={**shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        answers = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for out, error in answers:
        assert out.strip() == "equal", error


@pytest.mark.parametrize("chunk_size", [1, 3, 8])
def test_chunks_give_the_gradient_of_the_whole_batch(chunk_size: int) -> None:
    torch.manual_seed(0)
    encoder, images = nn.Linear(5, 4).double(), torch.randn(8, 5).double()
    groups = torch.arange(8) % 3
    loss = contrastive_loss(encoder(images), groups, 0.1)
    expected = torch.autograd.grad(loss, list(encoder.parameters()))
    value = backward_in_chunks(
        encoder, images, chunk_size, lambda features: contrastive_loss(features, groups, 0.1), nullcontext
    )
    torch.testing.assert_close(value, loss.detach().to(value.dtype), rtol=1e-5, atol=1e-6)
    for slope, parameter in zip(expected, encoder.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-4, atol=1e-5)


def test_batch_norm_remembers_every_image_of_a_cached_batch_once() -> None:
    torch.manual_seed(0)
    cached, plain = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    images = torch.randn(12, 3)
    for chunk in images.split(4):  # type: ignore[no-untyped-call]
        plain(chunk)
    backward_in_chunks(cached, images, 4, lambda features: features.square().sum(), nullcontext)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[name], value)


def test_lars_scales_a_layers_step_to_its_weights() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    bias = nn.Parameter(torch.tensor([1.0]))
    weight.grad, bias.grad = torch.tensor([[0.0, 100.0]]), torch.tensor([2.0])
    groups = [{"params": [weight], "weight_decay": 1e-9}, {"params": [bias], "weight_decay": 0.0}]
    LARS(groups, lr=10.0).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[3.0, 4.0 - 10 * TRUST * 5.0]]))
    torch.testing.assert_close(bias.detach(), torch.tensor([-19.0]))


def test_a_loss_that_rests_at_chance_stops_the_run_and_a_falling_one_does_not(tmp_path: Path) -> None:
    settings = TrainSettings(data="digits", out=tmp_path, warmup_epochs=2)
    metrics = tmp_path / METRICS_FILE
    metrics.write_text("".join(f'{{"loss": {loss}}}\n' for loss in (4.0, 4.0, 4.0, 4.0)))
    check_collapse(settings, 4.0)  # only two epochs after the warm-up
    metrics.write_text("".join(f'{{"loss": {loss}}}\n' for loss in (5.0, 4.5, 4.0, 4.001, 3.999)))
    check_collapse(settings, None)
    check_collapse(settings, 4.1)
    with pytest.raises(FailedPreconditionError, match="tells nothing apart"):
        check_collapse(settings, 4.0)
