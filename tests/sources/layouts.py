"""The layouts of docs/reference/your-images.md: the rows of its table, and the files that they describe."""

import io
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from imagekin.encoder.decoding.formats import IMAGE_SUFFIXES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "your-images.md"
IMAGE = b"an image"


def layouts() -> list[tuple[str, list[str], str, str]]:
    """Return the rows of the page's table: name, files, labels and splits."""
    page = PAGE.read_text(encoding="utf-8").partition("## Layouts")[2]
    lines = [line for line in page.splitlines() if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [(name, re.findall(r"`([^`]+)`", files), labels, splits) for name, files, labels, splits in rows]


Images = Callable[[str], bytes]


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


def parquet(name: str, rows: list[str], image: Images) -> bytes:
    """Return a file as the Hub stores images: a column of labels, and images whose paths are names that repeat."""
    column, *labels = rows
    images = [{"bytes": image(f"{name}/{row}"), "path": "image.jpg"} for row in range(len(labels))]
    file = io.BytesIO()
    pq.write_table(pa.table({"image": images, column: labels}), file)
    return file.getvalue()


def packed(member: str, text: str) -> bytes:
    """Return the contents of a member; in a table, `:` and `;` are commas and ends of lines."""
    return (text.replace(":", ",").replace(";", "\n") if member.endswith(".csv") else text).encode()


def make(root: Path, files: list[str], image: Images = lambda name: IMAGE) -> Path:
    """Write the files of a layout.

    Args:
        root: the folder to write to.
        files: the files, as the table has them.
        image: returns an image file's bytes by its name.
    """
    for text in files:
        name, opening, inside = re.match(r"([^({\[]+)(?:([({\[])(.*))?$", text).groups()  # type: ignore[union-attr]
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if opening is None:
            path.write_bytes(image(name) if path.suffix.lower() in IMAGE_SUFFIXES else b"")
        elif opening != "(":
            path.write_text(opening + inside)
        elif name.endswith((".csv", ".tsv", ".txt")):
            path.write_text(inside[:-1].replace(";", "\n") + "\n")
        elif name.endswith(".parquet"):
            path.write_bytes(parquet(name, inside[:-1].split(";"), image))
        else:
            members = (one.partition("=") for one in inside[:-1].split(","))
            contents = {member: packed(member, data) or image(f"{name}/{member}") for member, _, data in members}
            path.write_bytes(archive(name, contents))
    return root
