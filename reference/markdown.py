"""Small pieces of Markdown."""

import html
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a cell's line breaks and bars cannot end it."""
    lines = [row_of(header), "|" + "---|" * len(header), *(row_of(row) for row in rows)]
    return "\n".join(lines) + "\n"


def row_of(cells: Sequence[str]) -> str:
    """Return one row of a table."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def code(text: str) -> str:
    """Return text as code within a line, whatever it contains; empty for empty text."""
    if not text:
        return ""
    fence = "``" if "`" in text else "`"
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def prose(text: str) -> str:
    """Return plain text for Markdown: its angle brackets are characters, its back quotes stay code."""
    parts = text.split("`")
    parts[::2] = [html.escape(part, quote=False).replace("*", "\\*").replace("_", "\\_") for part in parts[::2]]
    return "`".join(parts)
