"""Draw the report's pictures as text to embed in the page: charts as SVG, images as PNG data URLs."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

_THUMBNAIL = 64
_NAMED_CLASSES = 30
_LEGEND_CLASSES = 20


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
    """Draw the share of each true class (row) that is predicted as each class (column)."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.28 * len(class_names) + 1.5, 4.0, 9.0))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(class_names) <= _NAMED_CLASSES:
        ticks = range(len(class_names))
        axes.set_xticks(ticks, [short(name) for name in class_names], rotation=90)
        axes.set_yticks(ticks, [short(name) for name in class_names])
        for row, column in zip(*np.nonzero(matrix), strict=True):
            dark = shares[row, column] > 0.5
            place = (column, row, str(matrix[row, column]))
            axes.text(*place, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return _svg(figure)


def embedding_map(points: NDArray[np.float32], labels: NDArray[np.int64], class_names: Sequence[str]) -> str:
    """Draw embeddings [M, 2] as points, one colour per class."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot()
    present = np.unique(labels)
    colours = matplotlib.colormaps["tab20" if len(present) <= _LEGEND_CLASSES else "hsv"]
    for place, label in enumerate(present):
        rows = points[labels == label]
        colour = colours(place if len(present) <= _LEGEND_CLASSES else place / len(present))
        axes.scatter(rows[:, 0], rows[:, 1], s=10, color=colour, label=short(class_names[label]))
    if len(present) <= _LEGEND_CLASSES:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _bare(axes)
    return _svg(figure)


def thumbnail(pixels: NDArray[np.uint8]) -> str:
    """Return an image, uint8 [H, W, 3], as a PNG data URL, reduced if it is large."""
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def short(name: str, length: int = 24) -> str:
    """Shorten a class name to fit beside an axis, keeping its end; escape dollar signs, which would begin a formula."""
    return (name if len(name) <= length else "…" + name[1 - length :]).replace("$", r"\$")


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _svg(figure: Figure) -> str:
    data = io.StringIO()
    # Text stays text, and ids are not random, so that the same run gives the same page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "imagekin"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    text = data.getvalue()
    return text[text.index("<svg") :]
