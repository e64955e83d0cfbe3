"""A database that seems settled is read quickly, and what others write to it is still seen."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from imagekin.index.storage.connection import connect, read_settled


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "items.sqlite"
    path.touch()
    with contextlib.closing(connect(path, read_only=False)) as connection:
        connection.execute("CREATE TABLE counter (value INTEGER)")
        connection.execute("INSERT INTO counter VALUES (1)")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return settle(path)


def settle(path: Path) -> Path:
    """Make a file one that has not been written for a minute."""
    status = path.stat()
    os.utime(path, (status.st_atime - 60, status.st_mtime - 60))
    return path


def value(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT value FROM counter").fetchone()[0])


def test_a_settled_database_is_read_without_the_files_of_a_log(database: Path) -> None:
    assert read_settled(database, value) == 1
    assert [file.name for file in database.parent.iterdir()] == [database.name]


def test_what_stands_only_in_the_log_is_read(database: Path) -> None:
    with contextlib.closing(connect(database, read_only=False)) as writer:
        writer.execute("UPDATE counter SET value = 2")
        settle(database)
        assert read_settled(database, value) == 2


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_write_in_the_midst_of_reading_is_seen(database: Path, checkpoint: bool) -> None:
    writer = connect(database, read_only=False)
    values = iter((2, 3))

    def read(connection: sqlite3.Connection) -> int:
        found = value(connection)
        if (number := next(values, None)) == 2:
            writer.execute("UPDATE counter SET value = ?", (number,))
            if checkpoint:
                writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return found

    with contextlib.closing(writer):
        assert read_settled(database, read) == 2


def test_a_file_that_was_just_written_is_not_taken_for_settled(database: Path) -> None:
    os.utime(database)
    seen: list[bool] = []
    read_settled(database, lambda connection: seen.append(Path(f"{database}-shm").exists()))
    assert seen == [True]


def test_damage_is_said_as_it_is_of_any_database(database: Path) -> None:
    database.write_bytes(b"no database" * 1000)
    with pytest.raises(sqlite3.DatabaseError):
        read_settled(settle(database), value)
