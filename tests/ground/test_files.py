"""Files and folders take their place whole or not at all, whatever fails and whenever the process dies."""

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagekin import files
from tests import faults
from tests.disks import second_disk, small_disk


@pytest.fixture
def other_disk() -> Iterator[Path]:
    """Return a folder on another file system than the one of temporary files."""
    with second_disk() as folder:
        yield folder


@pytest.fixture(params=["exchange", "aside"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let folders change places in one step, or by way of a third name as on file systems that cannot do that."""
    way: str = request.param
    if way == "aside":

        def refuse(one: Path, other: Path) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        monkeypatch.setattr(files, "_exchange", refuse)
    return way


def fill(folder: Path, text: str) -> None:
    (folder / "inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        (folder / name).write_text(text)


def read(folder: Path) -> set[str]:
    """Return what the files of a folder say: one text for a whole folder."""
    return {(folder / name).read_text() for name in ("a", "inner/b")}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("walk", [faults.failures, faults.kills])
@pytest.mark.parametrize("before", ["old", None])
def test_a_file_is_old_or_new_after_a_fault_at_any_step(tmp_path: Path, walk: object, before: str | None) -> None:
    path = tmp_path / "file"

    def prepare() -> None:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(before)

    steps = 0
    for _ in walk(lambda: files.write_text(path, "new"), prepare):  # type: ignore[operator]
        steps += 1
        assert (path.read_text() if path.exists() else None) in (before, "new")
    assert steps >= 5
    files.write_text(path, "newest")
    assert path.read_text() == "newest"
    assert names(tmp_path) == ["file"], "what a killed process left is removed by the next one"


@pytest.mark.parametrize("walk", [faults.failures, faults.kills])
@pytest.mark.parametrize("before", ["old", None])
def test_a_folder_is_old_or_new_after_a_fault_at_any_step(
    tmp_path: Path, way: str, walk: object, before: str | None
) -> None:
    target, made = tmp_path / "folder", tmp_path / "made"

    def prepare() -> None:
        for path in (target, made):
            shutil.rmtree(path, ignore_errors=True)
        fill(made, "new")
        if before is not None:
            fill(target, before)

    steps = 0
    for _ in walk(lambda: files.put_folder(made, target), prepare):  # type: ignore[operator]
        steps += 1
        if way == "aside":
            files.clear_leftovers(tmp_path)
        assert (target.exists() and read(target)) in ({"new"}, before is not None and {before})
    assert steps >= 4
    files.clear_leftovers(tmp_path)
    assert set(names(tmp_path)) <= {"folder", "made"}


@pytest.mark.parametrize("walk", [faults.failures, faults.kills])
def test_a_folder_from_another_file_system_too(tmp_path: Path, other_disk: Path, way: str, walk: object) -> None:
    target, made = tmp_path / "folder", other_disk / "made"

    def prepare() -> None:
        for path in (target, made):
            shutil.rmtree(path, ignore_errors=True)
        fill(made, "new")
        fill(target, "old")

    steps = 0
    for _ in walk(lambda: files.put_folder(made, target), prepare):  # type: ignore[operator]
        steps += 1
        if way == "aside":
            files.clear_leftovers(tmp_path)
        assert read(target) in ({"old"}, {"new"})
    assert steps >= 10
    prepare()
    files.put_folder(made, target)
    assert read(target) == {"new"}
    files.clear_leftovers(tmp_path)
    assert names(tmp_path) == ["folder"]
    assert not made.exists()


@pytest.mark.parametrize("walk", [faults.failures, faults.kills])
def test_a_folder_is_whole_or_gone_when_it_is_removed(tmp_path: Path, walk: object) -> None:
    target = tmp_path / "folder"

    def prepare() -> None:
        shutil.rmtree(target, ignore_errors=True)
        fill(target, "old")

    for _ in walk(lambda: files.remove_folder(target), prepare):  # type: ignore[operator]
        assert not target.exists() or read(target) == {"old"}
    assert not target.exists()
    files.clear_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 1) as disk:
        files.write_bytes(disk / "file", b"old")
        with pytest.raises(OSError, match="space"):
            files.write_bytes(disk / "file", bytes(2**21))
        assert (disk / "file").read_bytes() == b"old"
        fill(disk / "folder", "old")
        fill(tmp_path / "made", "x" * 2**21)
        with pytest.raises(OSError, match="space"):
            files.put_folder(tmp_path / "made", disk / "folder")
        assert read(disk / "folder") == {"old"}
        assert names(disk) == ["file", "folder"]
        assert read(tmp_path / "made") == {"x" * 2**21}


def test_an_exception_in_the_block_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half of it")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_what_somebody_is_at_work_on_is_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with files.replacing(path) as slow, files.new_folder(tmp_path) as folder:
        fill(folder, "new")
        slow.write_text("slow")
        files.write_text(path, "quick")
        files.clear_leftovers(tmp_path)
        with files.new_folder(tmp_path):
            assert read(folder) == {"new"}
        assert path.read_text() == "quick"
    assert path.read_text() == "slow"
    assert names(tmp_path) == ["file"]


def test_files_of_like_names_are_no_leftovers(tmp_path: Path) -> None:
    for name in (".file.notes.part", ".file.part", "file.0123456789ab.part", ".new-notes"):
        (tmp_path / name).touch()
    before = names(tmp_path)
    files.write_text(tmp_path / "file", "text")
    with files.new_folder(tmp_path):
        pass
    assert names(tmp_path) == sorted([*before, "file"])


def test_a_name_that_is_a_pattern_means_itself(tmp_path: Path) -> None:
    other = tmp_path / f".a.{'0' * 12}.part"
    other.touch()
    files.write_text(tmp_path / "[a]*", "text")
    assert names(tmp_path) == [other.name, "[a]*"]


def test_many_writers_of_one_file_leave_one_of_them_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = [str(number) * 10_000 for number in range(8)]

    def write(text: str) -> None:
        for _ in range(10):
            files.write_text(path, text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert names(tmp_path) == ["file"]


def test_a_link_to_a_folder_elsewhere_is_replaced_and_what_it_led_to_stays(tmp_path: Path, way: str) -> None:
    fill(tmp_path / "elsewhere", "old")
    fill(tmp_path / "made", "new")
    (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")
    files.put_folder(tmp_path / "made", tmp_path / "folder")
    assert read(tmp_path / "folder") == {"new"}
    assert read(tmp_path / "elsewhere") == {"old"}
    assert names(tmp_path) == ["elsewhere", "folder"]


def test_a_file_and_its_folder_are_put_on_disk_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        said.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).suffix}")
        fsync(descriptor)

    def replaced(old: Path, new: Path) -> None:
        said.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    files.write_text(tmp_path / "file", "text")
    assert said == ["sync .part", "rename", "sync "]
