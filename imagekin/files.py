"""Put files and folders in their place whole and on disk, or not at all.

What is new is written aside, in the folder where it belongs (a rename works on one file system only), put on disk, and
then renamed. What it replaces stays until then: after a failure or a kill at any step one of the two is there, whole.
What a killed process left aside is removed by the next one that writes there: whoever is at work on a temporary file or
folder holds a lock on it, so that process ids, which mean nothing to another container or host, are not asked.
"""

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from imagekin.errors import InvalidArgumentError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# Beginnings of the names of folders that are being made, that wait to be removed, and that others are taking the place
# of. No collection, snapshot or cache has a name that begins with a dot.
_NEW, _GONE, _OLD = ".new-", ".gone-", ".old-"


def check_no_folder(path: Path) -> None:
    """Check, before the work for a file begins, that no folder has its name.

    Raises:
        InvalidArgumentError: one has.
    """
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is a folder: name a file in it", field="out")


def sync_file(path: Path) -> None:
    """Put a file's bytes on disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Put the entries of a folder on disk."""
    try:
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system has no such thing
            raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of an empty temporary file beside `path`; it takes its place at the end of the block.

    Any library may write it, under that path. After an exception it is removed and `path` is as it was.

    Raises:
        OSError: the file cannot be written; `path` is as it was. Or the folder cannot be put on disk; `path` is new.
    """
    temporary, descriptor = _locked_file(path)
    try:
        _remove_unlocked(path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 12}.part"), _unlink)
        yield temporary
        os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


def put_file(made: Path, target: Path) -> None:
    """Put a file on disk and give it its place; both are on one file system. Raises as `replacing` does."""
    sync_file(made)
    os.replace(made, target)
    sync_folder(target.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole, or leave what is there; raises as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text whole, or leave what is there; raises as `replacing` does."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def new_folder(parent: Path) -> Iterator[Path]:
    """Yield a new temporary folder below `parent`; it is removed at the end, unless `put_folder` has taken it away."""
    _remove_unlocked(parent.glob(f"{_NEW}{'[0-9a-f]' * 16}"), _remove)
    folder, descriptor = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def put_folder(made: Path, target: Path) -> None:
    """Give a folder whose files are on disk its place, instead of what is there; a folder of the same parent is best.

    From another file system it is copied first. For whoever looks, `target` changes in one step (where the file system
    cannot exchange two folders, it is missing for a moment; `clear_leftovers` puts it back after a kill).

    Raises:
        OSError: it cannot be done; what was there still is. Or the parent cannot be put on disk; `target` is new.
    """
    if made.parent != target.parent and made.stat().st_dev != target.parent.stat().st_dev:
        with new_folder(target.parent) as near:
            copy_tree(made, near)
            put_folder(near, target)
        shutil.rmtree(made, ignore_errors=True)
        return
    sync_folder(made)
    if not os.path.lexists(target):
        os.rename(made, target)
        sync_folder(target.parent)
        return
    old = target.with_name(f"{_OLD}{target.name}")
    try:
        _exchange(made, target)
        old = made
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        _remove(old)
        os.rename(target, old)
        try:
            os.rename(made, target)
        except OSError:
            os.rename(old, target)
            raise
    sync_folder(target.parent)
    _remove(old)


def remove_folder(target: Path) -> None:
    """Remove a folder, in one step for whoever looks.

    Raises:
        OSError: it cannot be renamed; it is still there, whole.
    """
    gone = target.with_name(f"{_GONE}{secrets.token_hex(8)}")
    os.rename(target, gone)
    sync_folder(target.parent)
    _remove(gone)


def clear_leftovers(parent: Path) -> None:
    """Finish or undo what killed processes left half done among the folders below `parent`; one process at a time."""
    left = [name for name in os.listdir(parent) if name.startswith((_OLD, _GONE, _NEW))]
    for name in left:
        target = parent / name.removeprefix(_OLD)
        if name.startswith(_OLD) and not os.path.lexists(target):
            os.rename(parent / name, target)
            sync_folder(parent)
        elif not name.startswith(_NEW):
            _remove(parent / name)
    _remove_unlocked((parent / name for name in left if name.startswith(_NEW)), _remove)


def copy_tree(source: Path, target: Path) -> None:
    """Copy the files and folders in one folder into another, and put all of them on disk."""
    for entry in sorted(source.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            (target / entry.name).mkdir()
            copy_tree(entry, target / entry.name)
        else:
            shutil.copy2(entry, target / entry.name, follow_symlinks=False)
            if not entry.is_symlink():
                sync_file(target / entry.name)
    sync_folder(target)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _locked_file(path: Path) -> tuple[Path, int]:
    """Make a temporary file beside `path`; return its path and a descriptor that holds the lock on it."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # another process took it for a leftover before it was locked


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """Make a temporary folder; return its path and a descriptor that holds the lock on it."""
    while True:
        folder = parent / f"{_NEW}{secrets.token_hex(8)}"
        os.mkdir(folder, 0o755)
        with contextlib.suppress(FileNotFoundError):  # likewise
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _lock(descriptor)
            if os.fstat(descriptor).st_nlink:
                return folder, descriptor
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    # A file system without locks: then nobody else finds it unlocked either.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _remove_unlocked(paths: Iterator[Path], remove: Callable[[Path], None]) -> None:
    """Remove those that nobody is at work on."""
    for path in paths:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(path)
            finally:
                os.close(descriptor)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a folder, or a link to one; what cannot be removed now is a leftover."""
    if path.is_symlink():
        _unlink(path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders of a file system in one step; raises OSError where that cannot be done."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
