"""Draw the report's pictures as text to embed in the page: charts as SVG and HTML, images as data URLs."""

import base64
import io
import unicodedata
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

_THUMBNAIL = 64
_PREVIEW = 48
_NUMBERED_CLASSES = 30
_CELL, _SMALL_CELL = 22, 12
_DARK = (8, 48, 107)


def curves(lines: Sequence[dict[str, Any]]) -> str:
    """Draw the loss, the learning rate and, if it was logged, the kNN accuracy over the epochs."""
    wanted = (("loss", "loss"), ("learning_rate", "learning rate"), ("online_knn", "kNN accuracy, training images"))
    shown = [(name, title) for name, title in wanted if any(name in line for line in lines)]
    figure = Figure(figsize=(3.6 * max(1, len(shown)), 2.6), layout="constrained")
    for place, (name, title) in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), place)
        points = [(line["epoch"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 12 else "", markersize=3)
        axes.set_title(title)
        axes.set_xlabel("epoch")
    return _svg(figure)


def confusion(matrix: NDArray[np.int64], class_names: Sequence[str]) -> str:
    """Draw the share of each true class (row) that is predicted as each class (column), with all names.

    The names are text of the page, so that the browser draws every script; a figure's name is shown under the pointer.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    count = len(class_names)
    cell = _CELL if count <= _NUMBERED_CLASSES else _SMALL_CELL
    margin = 12 + 7 * max((_width(short(name)) for name in class_names), default=0)
    side = margin + cell * count
    parts = [
        f'<svg class="confusion" width="{side}" height="{side}" viewBox="0 0 {side} {side}" role="img">',
        f'<rect x="{margin}" y="{margin}" width="{cell * count}" height="{cell * count}" fill="#f7f7f7"/>',
    ]
    for place, name in enumerate(class_names):
        middle = margin + cell * (place + 0.5)
        text = f"<title>{escape(name)}</title>{escape(short(name))}</text>"
        parts.append(f'<text x="{margin - 5}" y="{middle:g}" text-anchor="end" dominant-baseline="central">{text}')
        turned = f'transform="translate({middle:g} {margin - 5}) rotate(-90)"'
        parts.append(f'<text {turned} dominant-baseline="central">{text}')
    for row, column in zip(*np.nonzero(matrix), strict=True):
        share, left, top = shares[row, column], margin + cell * int(column), margin + cell * int(row)
        told = f"{class_names[row]} → {class_names[column]}: {matrix[row, column]} ({share:.0%})"
        # From white to a dark blue; paler would not be seen.
        shade = ",".join(f"{255 - (255 - end) * (0.12 + 0.88 * share):.0f}" for end in _DARK)
        parts.append(f'<g><title>{escape(told)}</title><rect x="{left}" y="{top}" width="{cell}" height="{cell}" ')
        parts.append(f'fill="rgb({shade})"/>')
        if count <= _NUMBERED_CLASSES:
            colour = "white" if share > 0.5 else "black"
            place_of = f'x="{left + cell / 2:g}" y="{top + cell / 2:g}"'
            parts.append(f'<text {place_of} text-anchor="middle" dominant-baseline="central" ')
            parts.append(f'fill="{colour}">{matrix[row, column]}</text>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def embedding_map(
    points: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    captions: Sequence[str],
    pictures: Sequence[str],
) -> str:
    """Draw embeddings [M, 2] as points, one colour per class; under the pointer the image and its caption are shown.

    Args:
        points: their places.
        labels: [M], their classes.
        class_names: by number.
        captions: M texts.
        pictures: M data URLs.
    """
    low = points.min(0) if len(points) else np.zeros(2)
    extent = np.maximum(np.ptp(points, axis=0) if len(points) else np.ones(2), 1e-9)
    dots = []
    for point, label, caption, picture in zip(points, labels, captions, pictures, strict=True):
        x, y = (point - low) / extent * 100
        tip = f'<span class="tip"><img src="{picture}" alt=""><span dir="auto">{escape(caption)}</span></span>'
        style = f"left:{x:.2f}%;top:{100 - y:.2f}%;background:{colour_of(int(label))}"
        dots.append(f'<div class="dot" tabindex="0" style="{style}">{tip}</div>')
    legend = "".join(
        f'<li><i style="background:{colour_of(label)}"></i><span dir="auto">{escape(class_names[label])}</span></li>'
        for label in np.unique(labels).tolist()
    )
    return f'<div class="map">{"".join(dots)}</div><ul class="legend">{legend}</ul>'


def colour_of(label: int) -> str:
    """Return the colour of a class: hues a golden angle apart, so that neighbours in number differ."""
    return f"hsl({label * 137.508 % 360:.0f} 65% {42 + 12 * (label % 3)}%)"


def thumbnail(pixels: NDArray[np.uint8]) -> str:
    """Return an image, uint8 [H, W, 3], as a PNG data URL, reduced if it is large."""
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def preview(pixels: NDArray[np.uint8]) -> str:
    """Return an image, uint8 [H, W, 3], as a small JPEG data URL, of which a page may hold a thousand."""
    image = Image.fromarray(pixels)
    image.thumbnail((_PREVIEW, _PREVIEW))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def short(name: str, length: int = 24) -> str:
    """Shorten a class name to fit beside an axis, keeping its end."""
    return name if len(name) <= length else "…" + name[1 - length :]


def _width(text: str) -> int:
    """Return the width of a text in narrow letters; those of East Asia take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _svg(figure: Figure) -> str:
    data = io.StringIO()
    # Text stays text, and ids are not random, so that the same run gives the same page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "imagekin"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    text = data.getvalue()
    return text[text.index("<svg") :]
