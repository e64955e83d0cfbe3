"""Break one line of the code at a time, and check that a test notices.

    python -m tests.mutations                       every mutation of tests/mutations.toml
    python -m tests.mutations segments snapshot     those whose file or description contains one of these words

The checkout is copied and left alone. Each part of the list names the tests that have to notice; they must pass on the
unchanged copy first. All of them together take an hour or two, so no automatic check runs them.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_suffix(".toml")
# Ends what hangs: as often as long as the tests take on the unchanged copy, and this long at least.
LIMIT_FACTOR, LEAST_LIMIT_SECONDS = 4, 60.0
# Of pytest, when it was called wrongly or found no test.
_NO_TESTS_RUN = (4, 5)


@dataclass(frozen=True)
class Mutation:
    """A change to one file that breaks a promise.

    Attributes:
        file: path from the root.
        breaks: the promise.
        old: text that occurs once in the file.
        new: text to put in its place.
        tests: paths of the tests that have to notice.
        survives: reason why no test notices, empty when one has to.
    """

    file: str
    breaks: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""


def read_list(path: Path) -> list[Mutation]:
    """Read the mutations of a list; a mutation may name tests of its own."""
    parts = tomllib.loads(path.read_text(encoding="utf-8"))["part"]
    return [
        Mutation(**(one | {"tests": tuple(one.get("tests", part["tests"]))}))
        for part in parts
        for one in part["mutation"]
    ]


def run_tests(folder: Path, tests: tuple[str, ...], limit: float | None = None) -> str:
    """Run tests in a copy of the checkout until the first failure; return what failed, empty when all passed.

    Args:
        folder: the copy.
        tests: paths of the tests.
        limit: seconds after which they count as failed, without a limit by default.

    Raises:
        ValueError: there are no such tests.
    """
    # Without bytecode, which would be taken for that of a file changed within the same second.
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"the time limit of {limit:.0f} s"
    if process.returncode in _NO_TESTS_RUN:
        raise ValueError(f"{' '.join(tests)}: {said.strip()}")
    if not process.returncode:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    return failed[1] if failed else f"exit status {process.returncode}"


def judge(mutation: Mutation, folder: Path, limit: float) -> tuple[bool, str]:
    """Apply a mutation to a copy of the checkout and run its tests; return whether that went as listed, and a line."""
    path = folder / mutation.file
    original = path.read_text(encoding="utf-8")
    if original.count(mutation.old) != 1:
        return False, f"occurs {original.count(mutation.old)} times: {mutation.old!r}"
    path.write_text(original.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        failed = run_tests(folder, mutation.tests, limit)
    finally:
        path.write_text(original, encoding="utf-8")
    if failed:
        return True, f"killed by {failed}"
    return bool(mutation.survives), f"survived: {mutation.survives or 'a test is missing'}"


def main(*words: str) -> int:
    """Try the mutations of the list that contain one of the words, print each result, and return an exit status."""
    chosen = [one for one in read_list(LIST) if any(word in one.file or word in one.breaks for word in words or ("",))]
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkout"
        ignored = shutil.ignore_patterns(".*", "build", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, folder, symlinks=True, ignore=ignored)
        limits = {}
        for tests in dict.fromkeys(one.tests for one in chosen):
            started = time.monotonic()
            if failed := run_tests(folder, tests):
                print(f"without a mutation, {failed} fails", flush=True)
                return 1
            limits[tests] = max(LEAST_LIMIT_SECONDS, LIMIT_FACTOR * (time.monotonic() - started))
        for mutation in chosen:
            as_listed, line = judge(mutation, folder, limits[mutation.tests])
            wrong += not as_listed
            print(f"{mutation.file}: {mutation.breaks}: {line}", flush=True)
    print(f"{len(chosen)} mutations, {wrong} not as listed")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
