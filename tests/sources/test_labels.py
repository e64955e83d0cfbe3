"""One rule names classes by folders, so that training and indexing agree and no two classes become one."""

import zipfile
from pathlib import Path

import pytest

from imagekin.errors import InvalidArgumentError
from imagekin.sources.labels import FolderLabels, LabelRule
from imagekin.sources.open import open_source
from tests.sources.pictures import tar_bytes, write_files


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        ("cat/1 dog/1", "cat dog"),
        ("1 cat/2", "- cat"),
        ("Greek/a/1 Latin/a/1", "Greek/a Latin/a"),
        ("flowers/rose/1 flowers/tulip/1", "rose tulip"),
        ("x/flowers/rose/1 stray x/flowers/tulip/1", "rose - tulip"),
        ("flowers/rose/1", "rose"),
        ("a/1 a/b/1", "a a/b"),
        ("images/1 images/2", "- -"),
        ("images/cat/1 images/dog/2", "cat dog"),
        ("set/data/1", "-"),
        ("drawings/1 photos/2", "drawings photos"),
        ("rose/images/1 tulip/images/2", "rose tulip"),
        ("rose/images/1 rose/drawings/2 lily/3", "rose/images rose/drawings lily"),
    ],
)
def test_the_label_is_the_folders_path_without_what_says_nothing(paths: str, labels: str) -> None:
    rule = FolderLabels(paths.split())
    assert [rule(path).label or "-" for path in paths.split()] == labels.split()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ("train/cat/1 test/cat/1 val/x/y/1", "cat@train cat@test x/y@validation"),
        ("d/train/cat/1 d/test/dog/1", "cat@train dog@test"),
        ("Training/A/1 Testing/A/1", "A@train A@test"),
        ("train/1", "-@train"),
        ("train/1 test/1", "-@train -@test"),
        ("train/images/1 val/images/1", "-@train -@validation"),
        ("images/train/1 images/val/1", "-@train -@validation"),
        ("train/n1/images/1 train/n2/images/1 val/images/1 test/images/1", "n1@train n2@train -@validation -@test"),
        ("seg_train/seg_train/a/1 seg_test/seg_test/a/1 seg_pred/seg_pred/1", "a@train a@test -@unlabelled"),
        ("training_set/training_set/cats/1 test_set/test_set/cats/1", "cats@train cats@test"),
        ("cat/train/1 cat/test/1 dog/train/1", "cat@train cat@test dog@train"),
        ("a/b/train/1 a/b/test/1 a/c/train/1 a/c/test/1", "b@train b@test c@train c@test"),
        ("bus/1 train/1 car/1", "bus@- train@- car@-"),
        ("train/train/1 train/bus/1 test/train/1 test/bus/1", "train@train bus@train train@test bus@test"),
        ("train/a/x/1 train/a/y/1 train/b/1 test/a/x/1", "a/x@train a/y@train b@train a/x@test"),
        ("train/cat/1 test/1 extra/cat/1", "cat@train -@test extra/cat@-"),
        ("vehicles/train/1 vehicles/car/1 animals/cat/1", "vehicles/train@- vehicles/car@- animals/cat@-"),
        ("archive/Data/train/cat/1 archive/Data/valid/cat/1", "cat@train cat@validation"),
    ],
)
def test_splits_are_no_part_of_a_label_at_any_level(paths: str, names: str) -> None:
    rule = FolderLabels(paths.split())
    assert [f"{named.label or '-'}@{named.split or '-'}" for named in map(rule, paths.split())] == names.split()


def test_what_comes_later_goes_by_its_place() -> None:
    rule = FolderLabels(["Greek/a/1", "Greek/b/1"])
    assert rule("Latin/a/1.png").label == "Latin/a"
    assert rule("Greek/c/1.png").label == "c"
    rule = FolderLabels(["test/cat/images/1", "test/dog/images/1"])
    assert rule("train/cow/images/1") == ("cow", "train")
    assert rule("train/cat/images/1") == ("cat", "train")
    assert FolderLabels(["cat/train/1", "cat/test/1", "cow/train/1"])("dog/test/1") == ("dog", "test")


def test_a_folder_for_each_image_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagekin.sources.labels.MAX_FOLDERS", 10)
    rule = FolderLabels(f"{n}/1.png" for n in range(1000))
    assert rule("999/1.png").label == "999"


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("folder", "a/b"),
        ("parent", "b"),
        ("none", None),
        (r"(\w+)-", "cat"),
        (r"(?P<label>\d+)(x)?", "7"),
        ("dog", None),
    ],
)
def test_the_user_may_say_what_labels(source: str, label: str | None) -> None:
    rule = LabelRule(source).over(FolderLabels(["train/a/b/cat-7.png", "test/c/1.png"]))
    assert rule("train/a/b/cat-7.png") == (label, "train")


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="--label-from"):
        LabelRule("(")


def test_folders_archives_patterns_and_compressed_archives_agree(tmp_path: Path) -> None:
    files = {f"all/{kind}/{n}.png": b"x" for kind in ("fruit/apple", "fruit/pear", "drink/apple") for n in range(2)}
    root = write_files(tmp_path / "root", files)
    write_files(tmp_path, {"x.tar": tar_bytes(files), "x.tgz": tar_bytes(files, "w:gz")})
    expected = {key: key[4:-6] for key in files}
    for source in (root, tmp_path / "x.tar", tmp_path / "x.tgz", f"{tmp_path}/root/*/*/*/*.png"):
        assert {record.key: record.label for record in open_source(source)} == expected


def test_a_column_of_tables_names_classes_when_the_user_says_so(tmp_path: Path) -> None:
    root = write_files(tmp_path / "birds", {"a/1.jpg": b"1", "a/2.jpg": b"2", "b/3.jpg": b"3"})
    table = "path,label,Latin name\na/1.jpg,eagle,Aquila\na/2.jpg,owl,Strix\n"
    (root / "list.csv").write_text(table)
    with zipfile.ZipFile(tmp_path / "birds.zip", "w") as packed:
        for path in ("a/1.jpg", "a/2.jpg", "b/3.jpg", "list.csv"):
            packed.write(root / path, path)
    for source in (root, tmp_path / "birds.zip"):
        opened = open_source(source, label_from="column:Latin name")
        records = {record.key: record for record in opened}
        assert {key: record.label for key, record in records.items()} == {
            "a/1.jpg": "Aquila",
            "a/2.jpg": "Strix",
            "b/3.jpg": None,
        }
        assert records["a/1.jpg"].payload == {"label": "eagle"}
        assert next(opened.plan.lines()).startswith("labels by --label-from column:Latin name: 2 classes")
        with pytest.raises(InvalidArgumentError, match="no table of these images has a column 'latin'"):
            list(open_source(source, label_from="column:latin"))
    with pytest.raises(InvalidArgumentError, match="names no column"):
        open_source(root, label_from="column:")
