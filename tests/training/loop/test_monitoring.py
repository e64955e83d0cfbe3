"""A run that learns nothing is stopped, and one that has learnt everything goes on."""

import json
from pathlib import Path

import pytest

from imagekin.errors import FailedPreconditionError
from imagekin.training.loop.monitoring import check_collapse
from imagekin.training.settings import METRICS_FILE, TrainSettings


def logged(folder: Path, *losses: float) -> TrainSettings:
    lines = (json.dumps({"epoch": epoch, "loss": loss}) for epoch, loss in enumerate(losses, 1))
    (folder / METRICS_FILE).write_text("".join(line + "\n" for line in lines))
    return TrainSettings(data="digits", out=folder, warmup_epochs=0.0)


@pytest.mark.parametrize("losses", [(0.0,), (0.0004,), (0.0001, 0.0)])
def test_a_loss_of_nothing_from_the_start_stops_the_run(tmp_path: Path, losses: tuple[float, ...]) -> None:
    with pytest.raises(FailedPreconditionError, match=r"0\.000 from the first epoch on"):
        check_collapse(logged(tmp_path, *losses), None)


def test_a_loss_that_has_become_nothing_is_mentioned_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_collapse(logged(tmp_path, 1.2, 0.0003), 2.0)
    check_collapse(logged(tmp_path, 1.2, 0.0003, 0.0), 2.0)
    assert caplog.text.count("teach nothing more") == 1


def test_a_loss_that_rests_at_chance_stops_the_run_after_three_epochs(tmp_path: Path) -> None:
    check_collapse(logged(tmp_path, 2.0, 2.0), 2.0)
    with pytest.raises(FailedPreconditionError, match=r"rests at 2\.000"):
        check_collapse(logged(tmp_path, 3.0, 2.0, 2.0, 2.0), 2.0)
