"""What the tests of this folder share."""

from pathlib import Path

import pytest

from training.export import ExportReport, RunReport
from training.settings import MODEL_FILE


@pytest.fixture
def unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs end with their checkpoint, for tests that look at no artifact: making one takes longer than they do."""

    def export_run(out: Path, **_: object) -> RunReport:
        return RunReport(out / MODEL_FILE, "none", 0, ExportReport(0.0, 1.0, 0, 0.0), None)

    monkeypatch.setattr("training.pretrain.export_run", export_run)
