"""A run's folder: lock it, and decide what of an earlier run is kept."""

import dataclasses
import errno
import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagekin import files
from imagekin.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError
from imagekin.training.data.identity import DATA_FILE, Identity
from imagekin.training.loop import checkpoint
from imagekin.training.loop.checkpoint import Checkpoint
from imagekin.training.settings import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    DETAILS_FILE,
    METRICS_FILE,
    MODEL_FILE,
    PAGE_FILE,
    PROVENANCE_FILE,
    REPORT_FILE,
    TrainSettings,
)

_LOCK_FILE = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)

logger = logging.getLogger("imagekin.training")

_FREE_SETTINGS = frozenset(
    {"out", "test", "near", "allow_overlap", "device", "data_on", "cache_dir", "threads", "checkpoint_seconds"}
)
"""Settings that may change when a run goes on: none of them decides what the weights become (on one machine)."""


_WRITTEN = (
    CONFIG_FILE,
    DATA_FILE,
    METRICS_FILE,
    CHECKPOINT_FILE,
    MODEL_FILE,
    REPORT_FILE,
    DETAILS_FILE,
    PAGE_FILE,
    PROVENANCE_FILE,
)
"""Files that a run leaves in its folder."""


@contextmanager
def open_run(
    settings: TrainSettings, *, resume: bool, overwrite: bool, data: Identity | None = None
) -> Iterator[Checkpoint | None]:
    """Lock the folder `settings.out` for this process; yield the checkpoint to resume from, or None.

    Args:
        settings: of the run.
        resume: go on with the run in the folder.
        overwrite: remove the run in the folder.
        data: identity of the training images, which a new run records and a resumed one compares; None does neither.

    Raises:
        AlreadyExistsError: there is a run in it, and neither `resume` nor `overwrite` is set.
        InvalidArgumentError: the run to resume was started with other settings or images, or `out` is a file.
        FailedPreconditionError: another process works in it, or it cannot be written, now or while the run is open.
    """
    out = settings.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / _LOCK_FILE).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield _prepare(settings, data, resume=resume, overwrite=overwrite)
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidArgumentError(f"{out} is a file; name a folder with --out", field="out") from error
    except BlockingIOError as error:
        raise FailedPreconditionError(f"another process is training in {out}") from error
    except PermissionError as error:
        raise FailedPreconditionError(f"{out} cannot be written: {error.strerror}") from error
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise FailedPreconditionError(
            f"{out} cannot be written: {error.strerror}; free some space and go on with --resume"
        ) from error


def differences(settings: TrainSettings, saved: TrainSettings) -> tuple[str, ...]:
    """Return the names of the settings that differ although they may not when a run is resumed."""
    names = (field.name for field in dataclasses.fields(settings))
    return tuple(
        name for name in names if name not in _FREE_SETTINGS and getattr(settings, name) != getattr(saved, name)
    )


def _prepare(settings: TrainSettings, data: Identity | None, *, resume: bool, overwrite: bool) -> Checkpoint | None:
    out = settings.out
    if overwrite:
        for name in _WRITTEN:
            (out / name).unlink(missing_ok=True)
    elif resume:
        if (out / CHECKPOINT_FILE).exists():
            return _resume(settings, data)
        files.write_text(out / METRICS_FILE, "")
    elif (out / CONFIG_FILE).exists():
        state = "a finished run" if (out / MODEL_FILE).exists() else "an unfinished run"
        raise AlreadyExistsError(
            f"{out} holds {state}: go on with it (--resume), replace it (--overwrite), or name another --out"
        )
    files.write_text(out / CONFIG_FILE, settings.to_json())
    if data is not None:
        data.write(out)
    return None


def _resume(settings: TrainSettings, data: Identity | None) -> Checkpoint:
    """Read the checkpoint, compare settings and images, and cut later lines from the metrics."""
    saved = checkpoint.load(settings.out / CHECKPOINT_FILE)
    differing = differences(settings, saved.settings)
    if differing:
        name = differing[0]
        before, now = getattr(saved.settings, name), getattr(settings, name)
        raise InvalidArgumentError(
            f"this run was started with --{name.replace('_', '-')} {before}, not {now}; it goes on as it was started",
            field=name,
        )
    if data is not None:
        _check_data(settings, data)
    metrics = settings.out / METRICS_FILE
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    # Epochs after the checkpoint are run again, and a kill may have cut the last line short.
    kept = lines[: saved.position.epoch]
    files.write_text(metrics, "".join(line + "\n" for line in kept))
    files.write_text(settings.out / CONFIG_FILE, settings.to_json())
    return saved


def _check_data(settings: TrainSettings, data: Identity) -> None:
    """Compare the training images with those that the run was started with."""
    recorded = Identity.read(settings.out)
    if recorded is None:
        logger.warning("%s has no readable %s, so nobody knows if its images have changed", settings.out, DATA_FILE)
        data.write(settings.out)
    elif changes := recorded.differences(data):
        raise InvalidArgumentError(
            f"{settings.data} does not hold the images that this run was started with: {'; '.join(changes)}. Put the "
            "old ones back, or train anew (--overwrite, or another --out)",
            field="data",
        )


def last_loss(run_dir: Path) -> float | None:
    """Return the loss of the last epoch in the run's metrics; None when there is none."""
    path = run_dir / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return float(json.loads(lines[-1])["loss"]) if lines else None
