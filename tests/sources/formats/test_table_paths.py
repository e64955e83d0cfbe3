"""Tables are read as people have them: whatever wrote them, on whatever machine, for files here or in an archive."""

import tracemalloc
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from imagekin.sources.formats.table_paths import PackedFiles
from imagekin.sources.open import open_source
from tests.sources.pictures import bad, write_files

CAT_AND_DOG = {"1.jpg": "cat", "2.jpg": "dog"}


def labels(root: Path, table: Mapping[str, bytes], images: str = "") -> dict[str, str | None]:
    """Return the label of each of two images in a folder, beside a table; by the images' contents, their names."""
    write_files(root, {f"{images}{name}": name.encode() for name in CAT_AND_DOG} | dict(table))
    records = list(open_source(root))
    assert not bad(records)
    assert sorted(record.data for record in records) == [name.encode() for name in CAT_AND_DOG]  # type: ignore[type-var]
    return {str(record.data, "utf-8"): record.label for record in records}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "table",
    [
        "Filename\tClass\r\n1.jpg\tcat\r\n2.jpg\tdog\r\n".encode("utf-16-le"),
        "Filename\tClass\r\n1.jpg\tcat\r\n2.jpg\tdog\r\n".encode("utf-16-be"),
        b"sep=;\nFilename;Class\n1.jpg;cat\n2.jpg;dog\n",
        "Datei;Kategorie;Preis\n1.jpg;cat;1,50\n2.jpg;dog;0,80\n".encode("cp1252"),
        b"Filename,Class,,\n1.jpg,cat,,\n2.jpg,dog,,\n",
        b",Unnamed: 0,Filename,Class\n0,0,1.jpg,cat\n1,1,2.jpg,dog\n",
        b"Bild,Art\n1,cat\n2.jpg,dog\n".replace(b"1,", b"1.jpg,"),
        b"path,label\n1.JPG,cat\n2.JPG,dog\n",
        b"path,label\nC:\\pets\\1.jpg,cat\nC:\\pets\\2.jpg,dog\n",
        b"path,label\n/mnt/pets/1.jpg,cat\n/mnt/pets/2.jpg,dog\n",
        b"annotation_id,choice,id,image\n1,cat,1,/data/upload/1/0a1b2c3d-1.jpg\n2,dog,2,/data/upload/1/0a1b2c3e-2.jpg\n",
    ],
)
@pytest.mark.parametrize("images", ["", "images/"])
def test_a_table_labels_the_images(tmp_path: Path, table: bytes, images: str) -> None:
    assert labels(tmp_path, {"list.csv": table}, images) == CAT_AND_DOG


@pytest.mark.parametrize(
    "table",
    [
        b"epoch,loss\n1,2\n2,1\n",
        b"image,caption\n1.jpg,cat\n2.jpg,dog\n",
        b"image,url\n1.jpg,cat\n2.jpg,dog\n",
        b"image,about\n1.jpg,this is a cat in the sun\n2.jpg,dog\n",
        b"image,angle\n1.jpg,0.5\n2.jpg,1.5\n",
        b"image,split\n1.jpg,train\n2.jpg,train\n",
    ],
)
def test_what_is_no_label_is_none(tmp_path: Path, table: bytes) -> None:
    assert labels(tmp_path, {"list.csv": table}) == dict.fromkeys(CAT_AND_DOG)


def test_two_tables_of_different_images_are_both_used_and_of_the_same_none(tmp_path: Path) -> None:
    one, two = b"path,label\n1.jpg,cat\n", b"path,label\n2.jpg,dog\n"
    assert labels(tmp_path / "different", {"ann.csv": one, "bob.csv": two}) == CAT_AND_DOG
    assert labels(tmp_path / "same", {"ann.csv": one, "bob.csv": one + b"2.jpg,dog\n"}) == dict.fromkeys(CAT_AND_DOG)


def test_a_table_does_not_name_images_of_a_like_path_elsewhere(tmp_path: Path) -> None:
    """The beginning that is left out is the same for all paths, so that `b/1.jpg` is not taken for `a/1.jpg`."""
    write_files(tmp_path, {"1.jpg": b"1", "list.csv": b"path,label\na/1.jpg,cat\nb/1.jpg,dog\n"})
    records = list(open_source(tmp_path))
    assert [(record.key, record.label) for record in records if isinstance(record.data, bytes)] == [("1.jpg", "cat")]
    assert list(bad(records)) == ["b/1.jpg"]


def test_a_table_in_a_zip_archive_reports_what_is_missing_or_wrong_in_it(tmp_path: Path) -> None:
    rows = [
        "file,label,price",
        "1.jpg,cat,3",
        "gone.jpg,cat,1",
        "../1.jpg,cat,1",
        "2.jpg,dog",
        *(f"{number}.jpg,cat,3" for number in range(3, 7)),
        "https://a.org/1.jpg,x,1",
    ]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("pets/list.csv", "\n".join(rows))
        archive.writestr("pets/images/1.jpg", b"1")
        for number in range(2, 7):
            archive.writestr(f"pets/images/{number}.jpg", b"%d" % number)
    records = list(open_source(tmp_path / "x.zip"))
    found = [(record.key, record.label, record.payload) for record in records if isinstance(record.data, bytes)]
    listed = [(f"pets/images/{number}.jpg", "cat", {"price": 3}) for number in (1, 3, 4, 5, 6)]
    assert found == [*listed, ("pets/images/2.jpg", None, None)]
    assert list(bad(records).values()) == [
        "it is not in the archive",
        "it is not in the archive",
        "the row has 2 cells, the table 3 columns",
        "a table in an archive names a URL, which is not fetched",
    ]


def test_a_path_of_many_folders_in_an_archive_takes_little_memory() -> None:
    deep = "a/" * 20_000 + "1.jpg"
    tracemalloc.start()
    packed = PackedFiles([deep, "a/b/2.jpg", "c/3.jpg"], "")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20
    assert (packed.folders(""), packed.folders("a"), packed.folders("c")) == (["a", "c"], ["a", "b"], [])
    assert packed.is_file(deep)
