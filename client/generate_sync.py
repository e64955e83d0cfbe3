"""Generate the sync client from the async one: `python client/generate_sync.py [OUT]`.

Every `async_*.py` of this folder becomes `sync_*.py` in OUT (default: this folder, where the files are checked in).
The differences between the two are in `backends.py`. Needs ruff. `tests/client/test_generate_sync.py` compares.
"""

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
HEADER = "# Generated from {source} by generate_sync.py: change that file and run `make client`.\n"
# Pattern and replacement, applied in this order; they hold for docstrings, too.
REPLACEMENTS = (
    (r"\baclosing\b", "closing"),
    (r"\b__a(enter|exit)__", r"__\1__"),
    (r"\basync_(?=[a-z])", "sync_"),
    (r"\b(async|await) ", ""),
    (r"\bAsync(?=[A-Z])", ""),
    (r"The client:", "The sync client:"),
    (r"of the client that", "of the sync client that"),
    (r", for one event loop\.", ". Safe to share between threads."),
)


def sync_source(source: str) -> str:
    """Convert asyncio source to code that blocks instead of awaiting.

    Raises:
        ValueError: something of asyncio is left, for which the replacements have no counterpart.
    """
    for pattern, replacement in REPLACEMENTS:
        source = re.sub(pattern, replacement, source)
    if left := re.search(r".*(async|await|event loop).*", source, re.IGNORECASE):
        raise ValueError(f"there is no sync counterpart of {left[0].strip()!r}")
    return source


def _formatted(code: str, path: Path) -> str:
    """Sort the imports of code for `path` and format it, as ruff does."""
    for command in (["check", "--quiet", "--select", "I", "--fix-only"], ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(path), "-"]
        code = subprocess.run(ruff, input=code, capture_output=True, text=True, check=True).stdout  # noqa: S603
    return code


def generate(out: Path) -> None:
    """Write the sync twin of every async file into `out`."""
    for path in sorted(FOLDER.glob("async_*.py")):
        name = path.name.removeprefix("a")
        code = HEADER.format(source=path.name) + sync_source(path.read_text(encoding="utf-8"))
        (out / name).write_text(_formatted(code, FOLDER / name), encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
