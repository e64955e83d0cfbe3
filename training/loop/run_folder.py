"""A run's folder: lock it, and decide what of an earlier run is kept."""

import dataclasses
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagekin import files
from imagekin.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError
from imagekin.training.loop import checkpoint
from imagekin.training.loop.checkpoint import Checkpoint
from imagekin.training.settings import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    DETAILS_FILE,
    METRICS_FILE,
    MODEL_FILE,
    PAGE_FILE,
    REPORT_FILE,
    TrainSettings,
)

_LOCK_FILE = ".lock"

_FREE_SETTINGS = frozenset({"out", "test", "device", "data_on", "cache_dir", "threads", "checkpoint_seconds"})
"""What may change when a run goes on: none of it decides what the weights become (on one machine)."""


@contextmanager
def open_run(settings: TrainSettings, *, resume: bool, overwrite: bool) -> Iterator[Checkpoint | None]:
    """Lock the folder `settings.out` for this process; yield the checkpoint to resume from, or None.

    Raises:
        AlreadyExistsError: there is a run in it, and neither `resume` nor `overwrite` is set.
        InvalidArgumentError: the run to resume was started with other settings, or `out` is a file.
        FailedPreconditionError: another process works in it, or it cannot be written.
    """
    out = settings.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / _LOCK_FILE).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield _prepare(settings, resume=resume, overwrite=overwrite)
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidArgumentError(f"{out} is a file; name a folder with --out", field="out") from error
    except BlockingIOError as error:
        raise FailedPreconditionError(f"another process is training in {out}") from error
    except PermissionError as error:
        raise FailedPreconditionError(f"{out} cannot be written: {error.strerror}") from error


def differences(settings: TrainSettings, saved: TrainSettings) -> tuple[str, ...]:
    """Return the names of the settings that differ although they may not when a run is resumed."""
    names = (field.name for field in dataclasses.fields(settings))
    return tuple(
        name for name in names if name not in _FREE_SETTINGS and getattr(settings, name) != getattr(saved, name)
    )


def _prepare(settings: TrainSettings, *, resume: bool, overwrite: bool) -> Checkpoint | None:
    out = settings.out
    if overwrite:
        for name in (CONFIG_FILE, METRICS_FILE, CHECKPOINT_FILE, MODEL_FILE, REPORT_FILE, DETAILS_FILE, PAGE_FILE):
            (out / name).unlink(missing_ok=True)
    elif resume:
        if (out / CHECKPOINT_FILE).exists():
            return _resume(settings)
        files.write_text(out / METRICS_FILE, "")
    elif (out / CONFIG_FILE).exists():
        state = "a finished run" if (out / MODEL_FILE).exists() else "an unfinished run"
        raise AlreadyExistsError(
            f"{out} holds {state}: go on with it (--resume), replace it (--overwrite), or name another --out"
        )
    files.write_text(out / CONFIG_FILE, settings.to_json())
    return None


def _resume(settings: TrainSettings) -> Checkpoint:
    """Read the checkpoint, and cut later lines from the metrics."""
    saved = checkpoint.load(settings.out / CHECKPOINT_FILE)
    differing = differences(settings, saved.settings)
    if differing:
        name = differing[0]
        before, now = getattr(saved.settings, name), getattr(settings, name)
        raise InvalidArgumentError(
            f"this run was started with --{name.replace('_', '-')} {before}, not {now}; it goes on as it was started",
            field=name,
        )
    metrics = settings.out / METRICS_FILE
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    # Epochs after the checkpoint are run again, and a kill may have cut the last line short.
    kept = lines[: saved.position.epoch]
    files.write_text(metrics, "".join(line + "\n" for line in kept))
    files.write_text(settings.out / CONFIG_FILE, settings.to_json())
    return saved


def last_loss(run_dir: Path) -> float | None:
    """Return the loss of the last epoch in the run's metrics; None when there is none."""
    path = run_dir / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return float(json.loads(lines[-1])["loss"]) if lines else None
