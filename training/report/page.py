"""Write the report of a run or of any artifact: one HTML page, which needs no other file.

A run's `report.html` has the same figures as `details.json` beside it. An artifact's page shows the settings in its
metadata, and scores measured for the page.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagekin import files
from imagekin.counting import counted
from imagekin.encoder.artifact import read_metadata
from imagekin.encoder.metadata import JSON
from imagekin.errors import NotFoundError
from imagekin.machine import Device
from imagekin.training.data.identity import Identity
from imagekin.training.data.images import ImageSet
from imagekin.training.data.overlap import Overlap
from imagekin.training.evaluation.evaluate import align_labels, evaluate_artifact
from imagekin.training.loop.provenance import read as read_provenance
from imagekin.training.report import charts
from imagekin.training.report.details import Details, Strip, collect, read_curves, read_scores
from imagekin.training.settings import DETAILS_FILE, MODEL_FILE, PAGE_FILE, TrainSettings

_SHOWN_SCORES = {
    "knn_accuracy": ("kNN accuracy", ".2%"),
    "linear_accuracy": ("linear probe accuracy", ".2%"),
    "knn_macro_accuracy": ("kNN accuracy, mean over classes", ".2%"),
    "linear_macro_accuracy": ("linear probe accuracy, mean over classes", ".2%"),
    "recall_at_1": ("recall@1", ".2%"),
    "map_at_r": ("MAP@R", ".2%"),
    "train_count": ("training images", ",d"),
    "test_count": ("test images", ",d"),
    "class_count": ("classes", ",d"),
    "dim": ("dimension", ",d"),
    "onnx_max_abs_diff": ("largest difference, ONNX and torch", ".1e"),
    "onnx_knn_agreement": ("same nearest neighbour, ONNX and torch", ".2%"),
    "embeddings_per_second": ("embeddings per second", ",.0f"),
}
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #222; }
h2 { margin-top: 2em; } table { border-collapse: collapse; } td, th { padding: .15em .9em .15em 0; text-align: left; }
td.figure { text-align: right; font-variant-numeric: tabular-nums; } svg { max-width: 100%; height: auto; }
.strip { display: flex; gap: 6px; align-items: end; margin: 8px 0; }
figure { margin: 0; width: 72px; font-size: 10px; overflow-wrap: anywhere; }
figure img { width: 64px; height: 64px; object-fit: contain; border: 3px solid #bbb; image-rendering: pixelated; }
.scroll { overflow: auto; max-height: 90vh; } svg.confusion { max-width: none; font-size: 11px; }
.map { position: relative; height: 600px; margin: 40px 20px; border: 1px solid #eee; padding: 0; }
.dot { position: absolute; width: 8px; height: 8px; margin: -4px; border-radius: 50%; }
.tip { display: none; position: absolute; left: 10px; top: 10px; width: 120px; padding: 6px; font-size: 11px;
  background: white; border: 1px solid #999; overflow-wrap: anywhere; }
.tip img { display: block; width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated; }
.dot:hover, .dot:focus { z-index: 2; outline: 2px solid #222; } .dot:hover .tip, .dot:focus .tip { display: block; }
.legend { columns: 4 160px; list-style: none; padding: 0; font-size: 12px; max-height: 300px; overflow: auto; }
.legend i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 6px; }
.same img { border-color: #2a9d4a; } .other img { border-color: #d1495b; } .query { margin-right: 14px; }
"""


def write_report(
    run: Path, train: ImageSet, test: ImageSet, *, overlap: Overlap | None = None, device: Device = "auto"
) -> Path:
    """Write `report.html` and `details.json` into the run's folder and return the page's path; errors as `collect`.

    `overlap` is what `without_overlap` found; without it the page says that nobody looked.
    """
    settings, scores = TrainSettings.load(run), read_scores(run)
    now = {"data_id": Identity.of(train).id, "test_id": Identity.of(test).id}
    if scores.get("test_id") and any(scores.get(name) != known for name, known in now.items()):
        # The page is about these images, so its scores must be, too.
        scores |= now | evaluate_artifact(run / MODEL_FILE, train, test, device=device, seed=settings.seed).to_json()
        recorded = Identity.read(run)
        scores["data_as_recorded"] = None if recorded is None else recorded.id == now["data_id"]
    details = collect(find_model(run), read_curves(run), train, test, device=device, seed=settings.seed)
    files.write_text(run / DETAILS_FILE, json.dumps(details.to_json(train, test)) + "\n")
    title = f"{settings.objective} on {train.name}"
    about = f"{settings.encoder} encoder at {settings.image_size} pixels"
    told = (scores, details, train, test, overlap, read_provenance(run))
    files.write_text(run / PAGE_FILE, page(title, about, settings.to_dict(), *told))
    return run / PAGE_FILE


def write_artifact_report(
    model: Path, train: ImageSet, test: ImageSet, out: Path, *, overlap: Overlap | None = None, device: Device = "auto"
) -> Path:
    """Write the page of an artifact that has no run's folder to `out` and return it.

    Raises:
        NotFoundError: there is no such model.
        InvalidArgumentError: it is no artifact, a set has no labels, or `test` has a class that `train` lacks.
        FailedPreconditionError: the images were prepared by other rules than the model's.
    """
    metadata = read_metadata(model)
    scores = evaluate_artifact(model, train, test, device=device).to_json()
    scores |= {"dim": metadata.dim, "data_id": Identity.of(train).id, "test_id": Identity.of(test).id}
    details = collect(model, (), train, test, device=device)
    side = metadata.preprocess
    about = f"The artifact {model.name} at {side.height}×{side.width} pixels, space {metadata.space}"
    known: dict[str, JSON] = {
        "objective": metadata.objective,
        "dataset": metadata.dataset,
        "precision": metadata.precision,
    }
    known |= {name: value for name, value in metadata.training.items() if not isinstance(value, dict | list)}
    title = f"{model.stem} on {test.name}"
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(out, page(title, about, known, scores, details, train, test, overlap))
    return out


def find_model(run: Path) -> Path:
    """Return the model of a run; raises NotFoundError when it is not exported."""
    if not (run / MODEL_FILE).exists():
        raise NotFoundError(f"{run} has no {MODEL_FILE}; finish the run (--resume) or export it")
    return run / MODEL_FILE


def page(
    title: str,
    about: str,
    settings: Mapping[str, JSON],
    scores: Mapping[str, Any],
    details: Details,
    train: ImageSet,
    test: ImageSet,
    overlap: Overlap | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Return a report as one HTML page without links, scripts or other files."""
    labels = align_labels(train, test)
    sections = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(about)}, judged on {counted(len(test), 'image')} of {escape(test.name)}.</p>",
        *(f"<p>{escape(sentence)}</p>" for sentence in _claims(scores, overlap)),
        "<h2>Scores</h2>",
        _table([(name, format(scores[key], form)) for key, (name, form) in _SHOWN_SCORES.items() if scores.get(key)]),
        *_per_class(scores),
        "<h2>Training</h2>",
        charts.curves(details.curves) if details.curves else f"<p>{_untrained(settings)}</p>",
        "<h2>Confusion</h2>",
        "<p>By kNN. Rows are the true classes; the colour is the share of the row.</p>",
        f'<div class="scroll">{charts.confusion(details.confusion, details.class_names)}</div>',
        _confused(details),
        "<h2>Nearest neighbours</h2>",
        "<p>A test image, then the training images nearest to it with their cosine similarity: green of its class, red "
        "of another. The last rows are mistakes, where there are any.</p>",
        *(_strip(strip, labels[strip.query], train, test) for strip in details.strips),
        "<h2>Map</h2>",
        f"<p>{len(details.map_rows):,} test images by t-SNE: neighbours stay near, longer distances mean little. "
        "The pointer, or the tab key, shows an image.</p>",
        _map(details, labels, test),
        "<h2>Where it is from</h2>",
        _table(_origin(scores, provenance, train, test)),
        "<h2>Settings</h2>",
        _table([(name.replace("_", "-"), str(value)) for name, value in settings.items() if value != ""]),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(sections) + "\n</body></html>\n"


def _untrained(settings: Mapping[str, JSON]) -> str:
    """Return why there are no curves: a run of no epochs, or no run's folder."""
    return "Not trained: random weights." if "out" in settings else "Nothing here recorded its training step by step."


def _claims(scores: Mapping[str, Any], overlap: Overlap | None) -> list[str]:
    """Return sentences on what is known of the run and of the test images, and no more."""
    sentences = []
    if scores.get("finished") is False:
        done, planned = scores.get("epochs_done", 0), scores.get("epochs_planned", 0)
        sentences.append(f"The run is unfinished: {done} of {counted(planned, 'epoch')}.")
    if scores.get("data_as_recorded") is False:
        sentences.append("The training images given are not those that the run recorded, so it may know others.")
    if not scores.get("test_id"):
        sentences.append("The scores come from an older version, which did not say of which images.")
    if overlap is None:
        return [*sentences, "Nobody compared the test images with the training images."]
    how = "by content" if overlap.near is None else "by content, and as small pictures to find near-duplicates"
    compared = f"All {overlap.compared:,} test images were compared with the training images {how}"
    near = " Near-duplicates were not looked for (--near)." if overlap.near is None else ""
    if not overlap:
        return [*sentences, f"{compared}: none of them is one.{near}"]
    fate = "the scores count them all the same" if overlap.counted else "the scores leave them out"
    return [*sentences, f"{compared}. {overlap.describe()}; {fate}.{near}"]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = (
        f'<tr><td dir="auto">{escape(name)}</td><td class="figure">{escape(value)}</td></tr>' for name, value in rows
    )
    return f"<table>{''.join(cells)}</table>"


def _confused(details: Details) -> str:
    rows = [(f"{true} taken for {taken}", f"{count:,}") for true, taken, count in details.most_confused()]
    return f"<h3>Most frequent mistakes</h3>{_table(rows)}" if rows else "<p>No mistakes.</p>"


def _per_class(scores: Mapping[str, Any]) -> list[str]:
    """Return the table of the classes, those that are known worst first."""
    classes = sorted(scores.get("per_class") or [], key=lambda each: (each["knn_recall"], each["name"]))
    if not classes:
        return []
    columns = ("knn_recall", "knn_precision", "linear_recall", "linear_precision")
    head = "".join(f"<th>{name.replace('_', ' ').replace('knn', 'kNN')}</th>" for name in columns)
    rows = []
    for each in classes:
        figures = (each[name] for name in columns)
        cells = "".join(f'<td class="figure">{"–" if one is None else format(one, ".1%")}</td>' for one in figures)
        name = f'<td dir="auto">{escape(each["name"])}</td><td class="figure">{each["images"]:,}</td>'
        rows.append(f"<tr>{name}{cells}</tr>")
    table = f"<table><tr><th>class</th><th>test images</th>{head}</tr>{''.join(rows)}</table>"
    return ["<h3>Classes, worst first</h3>", f'<div class="scroll">{table}</div>']


def _map(details: Details, labels: NDArray[np.int64], test: ImageSet) -> str:
    names, rows = details.class_names, details.map_rows
    captions = [f"{names[labels[row]]} · {test.keys[row]}" for row in rows]
    pictures = [charts.preview(test.pixels[row]) for row in rows]
    return charts.embedding_map(details.map_points, labels[rows], names, captions, pictures)


def _origin(
    scores: Mapping[str, Any], provenance: Mapping[str, Any] | None, train: ImageSet, test: ImageSet
) -> list[tuple[str, str]]:
    """Return data, commands and machine as rows of a table."""
    rows = []
    for kind, images, identity in (("training", train, "data_id"), ("test", test, "test_id")):
        id_ = f", id {scores[identity]}" if scores.get(identity) else ""
        present = len(np.unique(images.labels))
        rows.append((f"{kind} images", f"{images.name}: {len(images):,} of {counted(present, 'class')}{id_}"))
        reasons = [f"{count:,} {suffix} ({reason})" for suffix, reason, count in images.ignored]
        unread = [f"{len(images.failed):,} that could not be used"] if images.failed else []
        if unread or reasons:
            rows.append((f"files left out of the {kind} images", ", ".join([*unread, *reasons])))
    known = provenance or {}
    rows += [("command", str(command)) for command in known.get("commands", [])]
    rows += [(name, str(value)) for name, value in (known.get("machine") or {}).items()]
    return rows


def _strip(strip: Strip, label: int, train: ImageSet, test: ImageSet) -> str:
    names = train.class_names
    taken = "" if strip.predicted == label else f" → {names[strip.predicted]}"
    figures = [_figure("query", test, strip.query, names[label] + taken)]
    for row, similarity in zip(strip.neighbours, strip.similarities, strict=True):
        kind = "same" if train.labels[row] == label else "other"
        figures.append(_figure(kind, train, row, f"{similarity:.2f} {names[train.labels[row]]}"))
    return f'<div class="strip">{"".join(figures)}</div>'


def _figure(kind: str, images: ImageSet, row: int, caption: str) -> str:
    picture = f'<img src="{charts.thumbnail(images.pixels[row])}" alt="" title="{escape(images.keys[row])}">'
    return f'<figure class="{kind}">{picture}<figcaption>{escape(caption)}</figcaption></figure>'
