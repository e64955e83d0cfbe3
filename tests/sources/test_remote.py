"""URLs are sources too: over real HTTP, and over a storage that lists its files; a broken one is an error."""

import functools
import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.sources.open import open_source
from imagekin.sources.records import SourceError
from tests.sources.pictures import FILES, bad, good, tar_bytes, write_files

fsspec = pytest.importorskip("fsspec", reason="reading URLs needs fsspec")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="http:// needs aiohttp")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_images_archives_and_manifests_over_http(tmp_path: Path, site: str) -> None:
    rows = "path,label\ncat/1.JPG,x\nnowhere.jpg,x\n/etc/passwd,x\n../a.jpg,x\n"
    write_files(
        tmp_path, FILES | {"x.tgz": tar_bytes(FILES, "w:gz"), "x.tar": tar_bytes(FILES), "m.csv": rows.encode()}
    )
    assert good(open_source(f"{site}/cat/1.JPG?size=big")) == {"1.JPG": b"one"}
    assert good(open_source(f"{site}/x.tgz")) == FILES
    assert good(open_source(f"{site}/x.tar")) == FILES
    records = list(open_source(f"{site}/m.csv"))
    assert good(records) == {"cat/1.JPG": b"one"}
    assert set(bad(records)) == {"nowhere.jpg", "/etc/passwd", "../a.jpg"}


def test_what_is_not_there_or_cut_off_is_an_error(tmp_path: Path, site: str) -> None:
    write_files(tmp_path, {"x.tar": tar_bytes(FILES)[:1500], "x.parquet": b"PAR1"})
    for name in ("nowhere.tar", "nowhere.jpg", "nowhere.csv", "nowhere.parquet", "x.parquet"):
        (record,) = open_source(f"{site}/{name}")
        assert not isinstance(record.data, bytes), name
    *_, last = open_source(f"{site}/x.tar")
    assert isinstance(last.data, SourceError)


def test_a_storage_that_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    class Bucket(MemoryFileSystem):  # type: ignore[misc]
        """Keeps files in memory, and says that it is S3."""

        protocol = "s3"
        store: ClassVar[dict[str, Any]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("s3://").strip("/")

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", Bucket)
    storage = fsspec.filesystem("s3")
    for name, data in (FILES | {"notes.txt": b"", "shards/1.tar": tar_bytes({"x/y.jpg": b"y"})}).items():
        storage.pipe(f"/bucket/photos/{name}", data)
    source = open_source("s3://bucket/photos")
    assert good(source) == FILES | {"shards/1.tar/x/y.jpg": b"y"}
    assert source.ignored.total == 1
    assert [record.label for record in source] == [None, "cat", "cat", "dog/big", "shards/x"]
    assert good(open_source("s3://bucket/photos/*/*.tar")) == {"shards/1.tar/x/y.jpg": b"y"}
    assert list(good(open_source("s3://bucket/photos/cat/*"))) == ["1.JPG", "2.png"]


def test_only_known_schemes_are_taken_and_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("file:///etc", "memory://x.tar", "ftp://x/y.tar"):
        with pytest.raises(InvalidArgumentError, match="none of s3"):
            open_source(url)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(FailedPreconditionError, match=r"pip install '.\[remote\]'"):
        open_source("s3://bucket/x.tar")
