"""The fenced blocks of the documentation: one parser for all tests of its examples."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced block.

    Attributes:
        page: its page, relative to the root.
        line: number of its first line of text in the page.
        language: what stands behind the fence.
        text: the lines between the fences.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def first(self) -> str:
        """Its first line."""
        return self.text.split("\n", 1)[0]


def pages() -> list[str]:
    """Return the pages of the documentation, the README first, relative to the root."""
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def text(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def fences(page: str, *languages: str) -> list[Fence]:
    """Return a page's fenced blocks, of some languages only if any are given."""
    whole = text(page)
    found = [
        Fence(page, whole.count("\n", 0, match.start(2)) + 1, match[1], match[2]) for match in _FENCE.finditer(whole)
    ]
    return [fence for fence in found if not languages or fence.language in languages]
