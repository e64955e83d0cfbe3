"""Text lists state splits; one that cannot be used is passed over with its reason, or refused when it is named."""

import io
from pathlib import Path

import pytest

from imagekin.errors import InvalidArgumentError
from imagekin.sources.formats.split_lists import likely_lists, list_rows
from imagekin.sources.open import open_source
from tests.sources.pictures import tar_bytes, write_files

_IMAGES = {"images/cat/1.jpg": b"1", "images/dog/2.jpg": b"2"}


def reasons(source: Path) -> set[str]:
    opened = open_source(source)
    assert all(record.split is None for record in opened)
    return {kind.reason for kind, _ in opened.ignored}


@pytest.mark.parametrize(
    ("names", "used"),
    [
        ("train.txt test.txt classes.txt", "train.txt test.txt"),
        ("train.txt val.txt trainval.txt test.txt", "train.txt val.txt test.txt"),
        ("trainval.txt test.txt", "trainval.txt test.txt"),
        ("images_train.txt images_family_train.txt images_test.txt", "images_train.txt images_test.txt"),
        ("cat_train.txt cat_val.txt", "cat_train.txt cat_val.txt"),
        ("train_test_split.txt images.txt bounding_boxes.txt", "train_test_split.txt"),
    ],
)
def test_lists_of_all_images_go_before_those_of_single_classes(names: str, used: str) -> None:
    assert likely_lists(names.split()) == used.split()


def test_divisions_of_the_same_images_are_passed_over_and_one_can_be_named(tmp_path: Path) -> None:
    root = write_files(tmp_path, _IMAGES)
    (root / "meta").mkdir()
    for name, line in {"train1": "cat/1", "test1": "dog/2", "train2": "dog/2", "test2": "cat/1"}.items():
        (root / "meta" / f"{name}.txt").write_text(f"# of {name}\n\n{line}\n")
    assert reasons(root) == {"one of several tables or lists of the same images: name the one to read"}
    (record,) = open_source(root / "meta" / "train2.txt")
    assert (record.data, record.label) == (b"2", "dog")


def test_a_text_of_something_else_is_no_list(tmp_path: Path) -> None:
    root = write_files(tmp_path, _IMAGES)
    (root / "train.txt").write_text("A train leaves the station.\n")
    assert reasons(root) == {"no image by its name"}
    with pytest.raises(InvalidArgumentError, match="its lines name no images beside it"):
        open_source(root / "train.txt")
    (root / "train.txt").write_text("elsewhere/3.jpg\nelsewhere/4.jpg\n")
    assert reasons(root) == {"a table of images of which most are not there"}


def test_a_table_goes_before_lists(tmp_path: Path) -> None:
    root = write_files(tmp_path, _IMAGES)
    (root / "labels.csv").write_text("path,label\nimages/cat/1.jpg,tom\nimages/dog/2.jpg,rex\n")
    (root / "train.txt").write_text("images/cat/1.jpg\n")
    assert reasons(root) == {"one of several tables or lists of the same images: name the one to read"}
    assert [record.label for record in open_source(root)] == ["tom", "rex"]


def test_lists_in_a_tar_archive_are_passed_over_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(tar_bytes({**_IMAGES, "meta/train.txt": b"cat/1"}))
    assert reasons(tmp_path / "set.tar") == {
        "a table or list in a tar archive: unpack the archive, and its labels and splits are used"
    }


def test_a_line_of_numbers_is_read_in_time_linear_in_its_length() -> None:
    lines = b"cat/1 -2  0.5\n17\n" + b"dog" + b" 1" * 250_000 + b"x\n" + b"dog" + b" " * 500_000 + b"x\n"
    paths = [row.values["path"] for row in list_rows(io.BytesIO(lines)) if not isinstance(row.values, str)]
    assert paths[:2] == ["cat/1", "17"]
    assert [len(str(path)) for path in paths[2:]] == [500_004, 500_004]
