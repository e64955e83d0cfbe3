"""A folder yields every image below it once, in the order of names, and says what it could not read."""

import os
import subprocess
from pathlib import Path

import pytest

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.sources.open import count_records, open_source
from imagekin.sources.values import MAX_KEY_BYTES
from tests.sources.pictures import FILES, bad, good, write_files


def test_every_image_below_it_in_the_order_of_names_with_its_folder_as_label(tmp_path: Path) -> None:
    root = write_files(tmp_path, FILES)
    records = list(open_source(root))
    assert [(record.key, record.data, record.label) for record in records] == [
        ("a.jpg", b"at the root", None),
        ("cat/1.JPG", b"one", "cat"),
        ("cat/2.png", b"two", "cat"),
        ("dog/big/3.webp", b"three", "dog/big"),
    ]
    assert count_records(root) == 4


def test_hidden_files_and_other_files_are_passed_over_and_counted(tmp_path: Path) -> None:
    extra = {".DS_Store": b"", "cat/._1.jpg": b"", "notes.txt": b"", "LICENSE": b"", ".git/x.jpg": b""}
    source = open_source(write_files(tmp_path, FILES | extra))
    assert set(good(source)) == set(FILES)
    assert source.ignored.total == 4, "what lies in a hidden folder is not even looked at"
    assert set(good(source)) == set(FILES)
    assert source.ignored.total == 4, "the second reading counts anew"
    assert source.count() == 4


def test_a_link_to_a_folder_above_is_not_followed_in_a_circle(tmp_path: Path) -> None:
    root = write_files(tmp_path / "root", FILES)
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "self").symlink_to(".")
    (root / "loop.jpg").symlink_to("loop.jpg")
    records = list(open_source(root))
    assert set(good(records)) == set(FILES)
    assert set(bad(records)) == {"loop.jpg"}


def test_links_to_other_files_and_folders_are_followed(tmp_path: Path) -> None:
    root = write_files(tmp_path / "root", FILES)
    other = write_files(tmp_path / "other", {"x.jpg": b"x"})
    (root / "linked").symlink_to(other)
    (root / "again.jpg").symlink_to(other / "x.jpg")
    assert good(open_source(root)) == FILES | {"linked/x.jpg": b"x", "again.jpg": b"x"}


def test_names_that_are_not_utf_8_are_reported(tmp_path: Path) -> None:
    write_files(tmp_path, FILES)
    for name in (b"caf\xe9.jpg", b"two\nlines.jpg"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    records = list(open_source(tmp_path))
    assert good(records) == FILES
    reasons = bad(records)
    assert "UTF-8" in reasons["caf\\udce9.jpg"]
    assert "control" in reasons["two\\nlines.jpg"]


def test_a_key_may_be_as_long_as_a_collection_takes(tmp_path: Path) -> None:
    folders = "/".join(["d" * 200] * 5)
    fits = f"{folders}/{'x' * (MAX_KEY_BYTES - len(folders) - 5)}.jpg"
    too_long = f"{folders}/{'x' * (MAX_KEY_BYTES - len(folders) - 4)}.jpg"
    records = list(open_source(write_files(tmp_path, {fits: b"x", too_long: b"x"})))
    assert set(good(records)) == {fits}
    assert "has 1025" in bad(records)[too_long]


def test_what_cannot_be_read_is_an_error_in_its_place(tmp_path: Path) -> None:
    root = write_files(tmp_path, FILES | {"cat/huge.jpg": b"x" * 101})
    (root / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(root / "pipe.png")
    (root / "folder.jpg").mkdir()
    records = list(open_source(root, DecodeLimits(max_bytes=100)))
    assert good(records) == FILES
    reasons = bad(records)
    assert set(reasons) == {"dangling.jpg", "pipe.png", "cat/huge.jpg"}
    assert "101 bytes" in reasons["cat/huge.jpg"]
    assert [record.key for record in records] == sorted(FILES | reasons)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_an_error_and_the_rest_is_read(tmp_path: Path) -> None:
    root = write_files(tmp_path, FILES)
    (root / "cat").chmod(0)
    try:
        records = list(open_source(root))
    finally:
        (root / "cat").chmod(0o700)
    assert set(good(records)) == {"a.jpg", "dog/big/3.webp"}
    assert "folder" in bad(records)["cat"]


def test_folders_may_be_nested_deeper_than_python_calls(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):  # Python gives up at 1,000 nested calls
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    write_files(tmp_path, FILES)
    try:
        assert good(open_source(tmp_path)) == FILES
    finally:  # pytest's own cleaning up would give up
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
