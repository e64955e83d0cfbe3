"""The layouts of docs/reference/your-images.md are read as its table says, before reading and by reading."""

import io
import re
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagekin.encoder.decoding.formats import IMAGE_SUFFIXES
from imagekin.sources.open import open_source

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "your-images.md"
IMAGE = b"an image"


def layouts() -> list[tuple[str, list[str], str, str]]:
    """Return the rows of the page's table: name, files, labels and splits."""
    page = PAGE.read_text(encoding="utf-8").partition("## Layouts")[2]
    lines = [line for line in page.splitlines() if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [(name, re.findall(r"`([^`]+)`", files), labels, splits) for name, files, labels, splits in rows]


def archive(name: str, members: dict[str, bytes]) -> bytes:
    """Return an archive of the kind that its name says."""
    file = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(file, "w") as packed:
            for path, data in members.items():
                packed.writestr(path, data)
        return file.getvalue()
    with tarfile.open(fileobj=file, mode=f"w:{name.rpartition('.tar')[2].lstrip('.')}") as tape:  # type: ignore[call-overload]
        for path, data in members.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tape.addfile(member, io.BytesIO(data))
    return file.getvalue()


def parquet(rows: list[str]) -> bytes:
    """Return a file as the Hub stores images: a column of labels, and images whose paths are names that repeat."""
    column, *labels = rows
    images = [{"bytes": IMAGE, "path": "image.jpg"} for _ in labels]
    file = io.BytesIO()
    pq.write_table(pa.table({"image": images, column: labels}), file)
    return file.getvalue()


def make(root: Path, files: list[str]) -> Path:
    """Write the files of a layout."""
    for text in files:
        name, opening, inside = re.match(r"([^({\[]+)(?:([({\[])(.*))?$", text).groups()  # type: ignore[union-attr]
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if opening is None:
            path.write_bytes(IMAGE if path.suffix.lower() in IMAGE_SUFFIXES else b"")
        elif opening != "(":
            path.write_text(opening + inside)
        elif name.endswith((".csv", ".tsv")):
            path.write_text(inside[:-1].replace(";", "\n") + "\n")
        elif name.endswith(".parquet"):
            path.write_bytes(parquet(inside[:-1].split(";")))
        else:
            members = (one.partition("=") for one in inside[:-1].split(","))
            path.write_bytes(archive(name, {member: data.encode() or IMAGE for member, _, data in members}))
    return root


def shown(counts: Counter[str]) -> str:
    """Return counts as the table has them."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def sorted_cell(cell: str) -> str:
    return ", ".join(sorted(cell.split(", ")))


@pytest.mark.parametrize(("name", "files", "labels", "splits"), layouts())
def test_a_layout_has_the_images_labels_and_splits_of_the_table(
    name: str, files: list[str], labels: str, splits: str, tmp_path: Path
) -> None:
    source = open_source(make(tmp_path / "set", files))
    records = list(source)
    assert {str(record.data) for record in records} <= {str(IMAGE)}
    assert len({record.key for record in records}) == len(records)
    assert shown(Counter(record.label or "none" for record in records)) == sorted_cell(labels)
    assert shown(Counter(record.split for record in records if record.split)) == sorted_cell(splits)
    found: Counter[tuple[str | None, str | None]] = Counter((record.label, record.split) for record in records)
    assert dict(source.plan.counts) == dict(found), "what was said before reading"
    assert abs((source.count() or len(records)) - len(records)) <= 1, "rows of tables are lines, which may be headers"
    assert [record.key for record in source] == [record.key for record in records], "a second reading is the same"


def test_the_page_has_at_least_forty_layouts_that_others_made() -> None:
    assert sum("](http" in name for name, *_ in layouts()) >= 40
    assert len(layouts()) >= 50
