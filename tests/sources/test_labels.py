"""One rule names classes by folders, so that training and indexing agree and no two classes become one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imagekin.sources.labels import LOOK_AHEAD, FolderLabels
from imagekin.sources.open import open_source
from tests.sources.pictures import tar_bytes, write_files


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["cat/1.png", "dog/1.png"], ["cat", "dog"]),
        (["1.png", "cat/2.png"], [None, "cat"]),
        (["Greek/a/1.png", "Latin/a/1.png"], ["Greek/a", "Latin/a"]),
        (["flowers/rose/1.png", "flowers/tulip/1.png"], ["rose", "tulip"]),
        (["x/flowers/rose/1.png", "stray.png", "x/flowers/tulip/1.png"], ["rose", None, "tulip"]),
        (["flowers/rose/1.png"], ["rose"]),
        (["a/1.png", "a/b/1.png"], ["a", "a/b"]),
        (["train/cat/1.png", "test/cat/1.png", "val/x/y/1.png"], ["cat", "cat", "x/y"]),
        (["d/train/cat/1.png", "d/test/dog/1.png"], ["cat", "dog"]),
        (["train/1.png"], ["train"]),
    ],
)
def test_the_label_is_the_folders_path_without_what_all_share(paths: list[str], labels: list[str | None]) -> None:
    rule = FolderLabels.of(paths)
    assert [rule(path) for path in paths] == labels


def test_no_more_paths_are_looked_at_than_are_needed() -> None:
    looked = 0

    def endless(folder: str) -> Iterator[str]:
        nonlocal looked
        while True:
            looked += 1
            yield f"{folder}/{looked}.png"

    FolderLabels.of(endless("cat"))
    assert looked == 1
    assert FolderLabels.of(endless("all/cat")).shared == ("all",)
    assert looked == 1 + LOOK_AHEAD


def test_what_comes_later_from_outside_the_shared_folders_keeps_its_whole_path() -> None:
    assert FolderLabels(("Greek",))("Latin/a/1.png") == "Latin/a"


def test_folders_archives_patterns_and_compressed_archives_agree(tmp_path: Path) -> None:
    files = {f"all/{kind}/{n}.png": b"x" for kind in ("fruit/apple", "fruit/pear", "drink/apple") for n in range(2)}
    root = write_files(tmp_path / "root", files)
    write_files(tmp_path, {"x.tar": tar_bytes(files), "x.tgz": tar_bytes(files, "w:gz")})
    expected = {key: key[4:-6] for key in files}
    for source in (root, tmp_path / "x.tar", tmp_path / "x.tgz", f"{tmp_path}/root/*/*/*/*.png"):
        assert {record.key: record.label for record in open_source(source)} == expected
