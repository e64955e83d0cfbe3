"""Runs that end with their checkpoint, for tests that look at no artifact: making one takes longer than they do.

As a script: `python -m imagekin.training`, whose run ends so.
"""

import sys
from pathlib import Path
from unittest import mock

from imagekin.training.__main__ import main
from imagekin.training.export.export import ExportReport, RunReport
from imagekin.training.settings import MODEL_FILE


def export_run(out: Path, **_: object) -> RunReport:
    """Stand in for `imagekin.training.export.export.export_run`."""
    return RunReport(out / MODEL_FILE, "none", 0, ExportReport(0.0, 1.0, 0, 0.0), None)


if __name__ == "__main__":
    with mock.patch("imagekin.training.loop.trainer.export_run", export_run):
        sys.exit(main())
