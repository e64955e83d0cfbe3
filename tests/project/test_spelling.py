"""Pages, the contract's comments and forms are spelt right, by codespell's list of common mistakes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_nothing_is_misspelt() -> None:
    listed = ["git", "ls-files", "*.md", "*.proto", "*.yml", "*.yaml", "*.html"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert len(tracked) > 50
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", *tracked], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
