"""Train an encoder for a step on every layout of docs/reference/your-images.md, by the command itself.

    python -m tests.training.layouts [NAME…]

Each has the classes and splits that its table says, or is refused in one line. Layouts without tables have three images
where the table has one. Without two classes the images are trained on without labels.
"""

import contextlib
import io
import json
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from imagekin.cli import main as cli
from imagekin.sources.open import open_source
from imagekin.sources.records import Record
from tests.sources.layouts import layouts, make
from tests.sources.pictures import png

_IMAGE = re.compile(r"([^,(]+?)(\.(?:png|jpe?g|ppm|tif))(?=$|[,)])", re.IGNORECASE)


@dataclass(frozen=True)
class Expected:
    """What training has to see.

    Attributes:
        train: keys and labels of the training images.
        test: keys and labels of the images that the encoder is judged on.
    """

    train: dict[str, str | None]
    test: dict[str, str | None]


def written(root: Path, files: list[str]) -> Path:
    """Write a layout with pictures that are all different, three times as many where no table names them."""
    numbers: dict[str, int] = {}
    if not any(re.search(r"\.(csv|tsv|json|jsonl|parquet)[({\[]|\.(cls|txt|csv)=", text) for text in files):
        files = [_IMAGE.sub(r"\1\2,\1-2\2,\1-3\2" if "(" in text else r"\1\2", text) for text in files]
        alone = [text for text in files if "(" not in text and _IMAGE.fullmatch(text)]
        files = files + [_IMAGE.sub(rf"\1-{copy}\2", text) for text in alone for copy in (2, 3)]
    return make(root, files, lambda name: png(numbers.setdefault(name, len(numbers)), 16))


def expected(root: Path) -> Expected:
    """Return how training treats the images that the source has, as the page says."""
    records = list(open_source(root))
    found: dict[str | None, list[Record]] = {}
    for record in records:
        found.setdefault(record.split, []).append(record)
    judged: list[Record] = []
    train = records
    if "train" in found:
        labelled = (found.get(split, []) for split in ("test", "validation"))
        judged = next((some for some in labelled if any(record.label for record in some)), [])
        if len(found.keys() - {None}) > 1:
            train = found["train"]
    return Expected(_labels(train), _labels(judged))


def _labels(records: list[Record]) -> dict[str, str | None]:
    """Return the labels by key; where some have a label, the others are left out."""
    labels = {record.key: record.label for record in records}
    return {key: label for key, label in labels.items() if label or not any(labels.values())}


def train(root: Path, out: Path, objective: str) -> tuple[int, dict[str, object], str]:
    """Run the command for one step; return its status, its report and what it said."""
    output, errors = io.StringIO(), io.StringIO()
    size = ["--image-size", "16", "--batch-size", "8", "--epochs", "1", "--threads", "1"]
    command = ["train", str(root), "--out", str(out), "--objective", objective, "--no-report", "--json", *size]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = cli.run(command)
    lines = output.getvalue().splitlines()
    return status, json.loads(lines[-1]) if lines else {}, errors.getvalue()


def check(files: list[str], folder: Path) -> str:
    """Train on a layout; return what became of it."""
    root = written(folder / "set", files)
    wanted = expected(root)
    classes = Counter(filter(None, wanted.train.values()))
    objective = "cross-entropy" if len(classes) > 1 else "simclr"
    status, report, said = train(root, folder / "run", objective)
    if status:
        assert status == 2, said
        refusal = said.splitlines()[-1]
        assert "Traceback" not in said, said
        strange = set(wanted.test.values()) - classes.keys() - {None}
        unscored = bool(wanted.test) and len(classes) < 2
        assert len(wanted.train) < 2 or strange or unscored, f"refused: {refusal}"
        return refusal
    assert (report["images"], report["classes"]) == (len(wanted.train), len(classes)), report
    assert report.get("test_count", 0) == len(wanted.test), report
    return f"{objective}: {report['images']} images of {report['classes']} classes, judged on {len(wanted.test)}"


def main(names: list[str]) -> None:
    """Train on all layouts, or on those whose names hold one of the words."""
    for name, files, *_ in layouts():
        if names and not any(word in name for word in names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            print(f"{re.sub(r'[(].*?[)]', '', name)}: {check(files, Path(folder))}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
