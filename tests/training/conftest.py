"""What the tests of this folder share."""

import pytest

from tests.training.unexported import export_run


@pytest.fixture
def unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs end with their checkpoint."""
    monkeypatch.setattr("imagekin.training.loop.trainer.export_run", export_run)
