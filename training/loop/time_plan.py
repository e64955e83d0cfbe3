"""Plan how many epochs fit into the time that a run may take."""

import logging
import time
from collections.abc import Callable

import torch

from imagekin.errors import InvalidArgumentError
from imagekin.training.settings import CONFIG_FILE, TrainSettings

logger = logging.getLogger("imagekin.training")

WARM_STEPS = 1
TIMED_STEPS = 3
_EXPORT_SECONDS = 20.0
# An image costs the exported file about a sixth of what it costs in training, forwards and backwards, at equal size.
_EMBEDDING_SHARE = 1 / 6


def plan_epochs(
    settings: TrainSettings, *, step_seconds: float, steps: int, elapsed: float, batch: int, scored: int
) -> int:
    """Return how many whole epochs fit into `settings.minutes`, at least one.

    Args:
        settings: of the run.
        step_seconds: of one step.
        steps: of one epoch.
        elapsed: seconds that loading took.
        batch: images of one step.
        scored: images that are embedded at the end, to score the model.
    """
    growth = (settings.image_size / settings.view_side) ** 2
    image_seconds = step_seconds / batch / settings.num_views * growth * _EMBEDDING_SHARE
    left = settings.minutes * 60 - elapsed - _EXPORT_SECONDS - scored * image_seconds
    epochs = int(left // (step_seconds * steps))
    if epochs < 1:
        logger.warning(
            "one epoch takes about %.1f minutes; --minutes %g is too short for it",
            step_seconds * steps / 60,
            settings.minutes,
        )
    return max(1, epochs)


def planned_before(settings: TrainSettings) -> int | None:
    """Return the epochs of the run in the settings' folder that was planned for the same time; None without one."""
    if not (settings.out / CONFIG_FILE).exists():
        return None
    try:
        saved = TrainSettings.load(settings.out)
    except InvalidArgumentError:
        return None
    return saved.epochs if saved.minutes == settings.minutes else None


def time_steps(step: Callable[[], object], device: torch.device) -> float:
    """Return the mean seconds of a step, the first one left out."""
    for _ in range(WARM_STEPS):
        step()
    _wait(device)
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        step()
    _wait(device)
    return (time.perf_counter() - started) / TIMED_STEPS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
