"""Where tests find the real images, which are no part of the project."""

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data(name: str) -> Path:
    """Return the path of a file of real images; skips the test where it is absent.

    Args:
        name: file name inside the folder that `IMAGEKIN_DATA` names (default `../shared/data` beside the checkout).
    """
    path = Path(os.environ.get("IMAGEKIN_DATA") or _DEFAULT) / name
    if not path.exists():
        pytest.skip(f"real images {name} are not here; set IMAGEKIN_DATA to their folder")
    return path
