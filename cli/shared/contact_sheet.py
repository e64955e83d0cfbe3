"""Write the answers to searches as one HTML file with the neighbours' small pictures in it, and open it."""

import html
import tempfile
import webbrowser
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagekin.types import Neighbour, Thumbnail

# The file holds names and labels that others chose: nothing in it runs, and nothing is loaded.
_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>imagekin search</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark }
body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem }
h2 { font-size: 1rem; overflow-wrap: anywhere }
ol { display: flex; flex-wrap: wrap; gap: 1rem; list-style: none; padding: 0 }
li { width: 160px; overflow-wrap: anywhere }
img, .none { display: flex; width: 160px; height: 160px; object-fit: contain; background: #8882 }
.none { align-items: center; justify-content: center }
</style>
"""


def contact_sheet(answers: Sequence[tuple[str, Sequence[Neighbour]]], pictures: Mapping[str, Thumbnail]) -> str:
    """Return a page with the neighbours of each query.

    Args:
        answers: each query's name and its neighbours.
        pictures: thumbnails by key; a neighbour without one gets an empty frame.
    """
    parts = [_HEAD]
    for query, neighbours in answers:
        parts.append(f"<h2>{html.escape(query)}</h2><ol>")
        for one in neighbours:
            found = pictures.get(one.key)
            label = "" if one.label is None else f"<br><b>{html.escape(one.label)}</b>"
            parts.append(f"<li>{_picture(found)}{html.escape(one.key)}{label}<br>{one.similarity:.3f}</li>")
        parts.append("</ol>")
    return "\n".join(parts)


def show(page: str) -> tuple[Path, bool]:
    """Write a page to a new file and open it in the browser; return the file, and whether a browser was found."""
    with tempfile.NamedTemporaryFile("w", prefix="imagekin-", suffix=".html", delete=False, encoding="utf-8") as file:
        file.write(page)
    return Path(file.name), webbrowser.open(Path(file.name).as_uri())


def _picture(found: Thumbnail | None) -> str:
    if found is None:
        return '<span class="none">no picture</span>'
    return f'<img alt="" src="data:image/jpeg;base64,{b64encode(found.jpeg).decode()}">'
