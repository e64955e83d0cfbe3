"""Train one encoder in several processes (torchrun): each takes its part of every batch.

Gradients are *averaged* over the processes, as DistributedDataParallel does, but as one flat tensor after the backward
pass: nothing wraps the encoder, so objectives, gradient caching and heads work as in a single process. Every process
computes a loss over all vectors from the gathered ones, and gets the gradient of its own vectors from it.
"""

import importlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous

from imagekin.errors import FailedPreconditionError, ImagekinError, InvalidArgumentError
from imagekin.training.loop.process_errors import HEAD_START_SECONDS, ElsewhereError, OneProcessError

_TIMEOUT = timedelta(minutes=30)
"""Longest wait for another process, which may read its images from a slower disk."""
_HOLDS_GROUPS = "torch.distributed.nn.functional"
"""A module that would keep a group for good, were it imported while there is one; see `process_group`."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""Beginnings of the messages of gloo when another process is gone."""


def world_size() -> int:
    """Return the number of processes, 1 when there is no group of them."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return this process's number; the first is 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started: nccl between GPUs, gloo otherwise. Do nothing in a single process.

    Each process uses the GPU of its local number. A failure in the block ends all of them, and one reports the reason.

    Raises:
        FailedPreconditionError: the processes cannot connect, or there are more of them than GPUs.
        ElsewhereError: another process failed, and raises the reason.
        OneProcessError: this process, which is not the first, failed alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1") or 1) == 1 or distributed.is_initialized():
        yield
        return
    # The functions of that module keep the group that exists at its first import as a default argument, and torch may
    # import it at any time. Imported too late, it would keep the group, and gloo's threads, beyond the end of Python,
    # where a thread that frees a tensor aborts the process.
    importlib.import_module(_HOLDS_GROUPS)
    try:
        if device.type == "cuda":
            _take_gpu(device, int(os.environ.get("LOCAL_RANK", "0")))
        store, number, count = next(iter(rendezvous("env://", timeout=_TIMEOUT)))
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=number, world_size=count, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FailedPreconditionError(f"the processes cannot meet ({reason}); start them with torchrun") from error
    try:
        yield
    except ElsewhereError:
        raise
    except Exception as error:
        if not _reports_first(store):
            raise ElsewhereError("another process failed") from error
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST):
            raise OneProcessError("another process was ended; the same command with --resume goes on") from error
        if number and isinstance(error, ImagekinError):
            raise OneProcessError(f"process {number}: {error}") from error
        raise
    finally:
        distributed.destroy_process_group()


def raise_together(error: ImagekinError | None, device: torch.device) -> None:
    """Raise `error` if there is one, and ElsewhereError in all other processes. All processes must call this."""
    failed = gather_rows(torch.tensor([error is not None], dtype=torch.int64, device=device))
    if error is not None:
        raise error
    if failed.any():
        raise ElsewhereError("another process failed")


def check_batch_size(batch_size: int) -> None:
    """Raise InvalidArgumentError when a batch of that size cannot be divided evenly among the processes."""
    if batch_size % world_size():
        raise InvalidArgumentError(
            f"--batch-size {batch_size} must be a multiple of the {world_size()} processes", field="batch_size"
        )


def even_part(count: int) -> int:
    """Return the largest number up to `count` that the processes can divide evenly, at least one each."""
    return max(count - count % world_size(), world_size())


def own_part(rows: Tensor) -> Tensor:
    """Return this process's part of a batch's rows; raises InvalidArgumentError when they cannot be divided evenly."""
    check_batch_size(len(rows))
    return rows.chunk(world_size())[rank()]


def gather(vectors: Tensor) -> Tensor:
    """Return the vectors of all processes [W·M, P]; gradients flow to this process's own."""
    if world_size() == 1:
        return vectors
    gathered: Tensor = _Gather.apply(vectors)
    return gathered


def gather_rows(values: Tensor) -> Tensor:
    """Return the values of all processes, one after the other; no gradient."""
    if world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def average(value: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes; no gradient."""
    if world_size() > 1:
        value = value.clone()
        distributed.all_reduce(value)
        value /= world_size()
    return value


def average_gradients(modules: Iterable[nn.Module]) -> None:
    """Replace every gradient by its mean over the processes; a missing gradient counts as zero."""
    if world_size() == 1:
        return
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= world_size()
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def share_buffers(module: nn.Module) -> None:
    """Copy the first process's buffers to all: BatchNorm's running statistics differ between processes."""
    if world_size() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


def _take_gpu(device: torch.device, number: int) -> None:
    count = torch.cuda.device_count()
    if str(device) != device.type:
        raise InvalidArgumentError(f"--device {device} is one GPU for several processes; use --device cuda")
    if number >= count:
        raise FailedPreconditionError(f"torch finds {count} GPUs here; start as many processes, or use --device cpu")
    torch.cuda.set_device(number)


def _reports_first(store: Any) -> bool:
    """Return whether this process is the first to report a failure."""
    if rank():
        time.sleep(HEAD_START_SECONDS)
    try:
        return int(store.add("imagekin/failed", 1)) == 1
    except RuntimeError:  # the store ended with the first process
        return False


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        ctx.count = len(vectors)
        return gather_rows(vectors)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        start = rank() * ctx.count
        # Every process has the whole loss, and gradients are averaged over processes later: hence the factor.
        return slopes[0][start : start + ctx.count] * world_size()
