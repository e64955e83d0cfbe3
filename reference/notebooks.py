"""Make the notebooks and the pages of `examples/` from its scripts: `python -m reference.notebooks` writes the former.

They are kept beside the scripts because people open notebooks where they find them. Tests compare the two, and run the
scripts.
"""

import json
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FOLDER = "tutorials/notebooks"
_KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def scripts() -> list[Path]:
    """Return the scripts that are notebooks, in jupytext's percent format."""
    return [path for path in sorted(EXAMPLES.glob("*.py")) if path.read_text(encoding="utf-8").startswith("# %%")]


def notebook_text(script: Path) -> str:
    """Return a script as the text of a notebook without outputs, the same each time."""
    cells: list[dict[str, Any]] = []
    for number, (kind, text) in enumerate(_cells(script)):
        code: dict[str, Any] = {"execution_count": None, "outputs": []} if kind == "code" else {}
        source = text.splitlines(keepends=True)
        cells.append({"cell_type": kind, "id": f"cell-{number}", "metadata": {}, **code, "source": source})
    notebook = {"cells": cells, "metadata": _KERNEL, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def notebook_page(script: Path) -> str:
    """Return a script as a page of the site: its text, and its code in fences."""
    pieces = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in _cells(script)]
    folder = "../../../examples/"
    notebook = f"[{script.stem}.ipynb]({folder}{script.stem}.ipynb)"
    end = f"As a notebook: {notebook}; as a script: [{script.name}]({folder}{script.name})."
    return "\n\n".join([*pieces, end]) + "\n"


def _cells(script: Path) -> list[tuple[str, str]]:
    """Return the cells of a script: `markdown` or `code`, and their text."""
    import jupytext

    return [(cell.cell_type, cell.source) for cell in jupytext.read(script, fmt="py:percent").cells]


def main() -> None:
    """Write the notebooks."""
    for script in scripts():
        script.with_suffix(".ipynb").write_text(notebook_text(script), encoding="utf-8")


if __name__ == "__main__":
    main()
