"""Docstrings, those of constants too, begin with one sentence of plain words on one line: imperative or noun phrase."""

import ast
import inspect
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Folders whose docstrings have not been read again yet; this list only shrinks.
NOT_YET: tuple[str, ...] = ()
NO_BEGINNING = re.compile(
    r"(What|Whether|Which|Who|Whose|Why|How|Where|When|Say|Return what|See the|Lets?)\b"
    # Modules, classes and functions are told what to do; they are not reported to do it.
    r"|(Adds|Answers|Applies|Asks|Brings|Calls|Checks|Chooses|Computes|Counts|Decides|Decodes|Draws|Embeds|Finds|Gives"
    r"|Has|Holds|Joins|Lets|Loads|Multiplies|Operates|Patches|Projects|Refuses|Sees|Silences|Stands|Stores|Walks|Batches|Collects|Converts|Fits|Hands|Is|Keeps|Knows|Lists|Looks|Makes|Names|Opens|Passes|Puts|Reads|Remembers|Returns|Runs|Scans"
    r"|Searches|Sends|Serves|Shares|Shows|Speaks|Takes|Tells|Trains|Turns|Waits|Watches|Writes)\b"
)


def product_files() -> list[str]:
    """Return the paths of the product's own Python files, generated ones left out."""
    folders = ("cli", "client", "encoder", "imagekin", "index", "protos", "serving", "sources", "training")
    listed = subprocess.run(
        ["git", "ls-files", "--", *(f"{folder}/*.py" for folder in folders)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for path in listed.stdout.split() if not re.search(r"_pb2(_grpc)?\.py$", path)]


def docstrings(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line and text of the docstrings of modules, classes, functions and, after their assignments, constants."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        before: ast.stmt | None = None
        for number, one in enumerate(node.body):
            described = number == 0 or isinstance(before, ast.Assign | ast.AnnAssign)
            if described and isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant):
                lines = inspect.cleandoc(str(one.value.value)).splitlines()
                if lines and isinstance(one.value.value, str):
                    yield one.lineno, lines
            before = one


def faults(text: str) -> list[str]:
    """Return the line and the reason of each docstring whose first line is not as it should be."""
    found = []
    for line, lines in docstrings(text):
        place = f"line {line}: {lines[0]}"
        if NO_BEGINNING.match(lines[0]):
            found.append(f"{place} (begins with {lines[0].split()[0]!r})")
        if not lines[0].endswith((".", ".)", ":")) or lines[1:2] not in ([], [""]):
            found.append(f"{place} (is not one sentence on one line)")
    return found


@pytest.mark.parametrize("path", [path for path in product_files() if path.split("/")[0] not in NOT_YET])
def test_first_lines_are_plain(path: str) -> None:
    assert faults((ROOT / path).read_text(encoding="utf-8")) == []


def test_folders_that_are_not_done_yet_exist() -> None:
    assert [folder for folder in NOT_YET if not (ROOT / folder).is_dir()] == []


@pytest.mark.parametrize(
    "line",
    [
        "What the files hold.",
        "Whether it was closed.",
        "Return what a search finds.",
        "How to classify.",
        "Reads items.",
        "Let single queries share a pass.",
        "Batch concurrent searches",
        "Batch concurrent\nsearches into one call.",
    ],
)
def test_a_first_line_that_is_not_plain_is_found(line: str) -> None:
    assert len(faults(f'def look():\n    """{line}"""\n')) == 1


@pytest.mark.parametrize("line", ["Batch concurrent searches into one call.", "Return whether an item is known."])
def test_a_plain_first_line_passes(line: str) -> None:
    assert faults(f'def look():\n    """{line}\n\n    More.\n    """\n') == []
