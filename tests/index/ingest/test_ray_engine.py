"""Batch indexing on the workers of a Ray cluster: nothing is lost with a worker, and the commands say the same."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from imagekin.cli import main as cli
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError, ImagekinError, InternalError
from imagekin.index.ingest.pipeline import IndexInterruptedError, index_images
from imagekin.index.ingest.ray_known_items import known_items
from imagekin.index.local.catalog import Catalog
from imagekin.sources.open import open_source
from tests.artifacts import tiny_artifact
from tests.e2e.processes import run
from tests.index.ingest.batching import CountingModel, DictSink, ListSource, LoggingModel, OpenLogging, counts, records
from tests.index.ingest.cluster import local_cluster
from tests.index.ingest.containers import KINDS, PICTURES
from tests.sources.pictures import png, tar_bytes, write_files

pytest.importorskip("ray", reason="ray is one of the dev extras")

from imagekin.index.ingest.ray_engine import ArtifactBytes, RayRecords

# Ray Data copies its own settings one by one, deprecated ones included.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.data\.context")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with local_cluster() as address:
        yield address


@dataclass(frozen=True)
class OpenSlow:
    """Opens an artifact in a worker, which then says who it is and takes its time."""

    artifact: ArtifactBytes
    log: Path

    def __call__(self) -> "SlowEncoder":
        """Open it."""
        return SlowEncoder(self.artifact(), self.log)


class SlowEncoder(LoggingModel):
    """A real model that writes down what it embeds."""

    def __init__(self, encoder: Encoder, log: Path) -> None:
        super().__init__(log)
        self.load_pixels = encoder.load_pixels  # type: ignore[method-assign]
        self._encoder = encoder

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed slowly."""
        time.sleep(0.05)
        with self._log.open("a") as file:
            file.write(f"{os.getpid()} {len(pixels)}\n")
        return self._encoder.embed_pixels(pixels)


def workers_in(log: Path) -> list[int]:
    """Return the process ids of the workers that embedded something, each once."""
    return list(dict.fromkeys(int(line.split()[0]) for line in log.read_text().splitlines()))


def test_a_killed_worker_loses_nothing_and_nothing_is_there_twice(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagekin.index.ingest.ray_engine._FILES_IN_CHUNK", 32)
    images = {f"{n % 7}/{n}.png": png(n, 24) for n in range(500)}
    folder = write_files(tmp_path / "photos", images)
    model, log = tiny_artifact(tmp_path / "model.onnx"), tmp_path / "log"
    encoder = Encoder.open(model, threads=1)
    killed: list[int] = []

    def on_progress(seen: int, total: int | None, failed: int) -> None:
        if seen >= 100 and not killed:  # by the thread that stores, while the workers embed further chunks
            killed.append(int(log.read_text().splitlines()[-1].split()[0]))
            os.kill(killed[0], signal.SIGKILL)

    with Catalog(tmp_path / "data") as catalog:
        collection = catalog.create("c", space=encoder.metadata.space, dim=encoder.metadata.dim)
        opener = OpenSlow(ArtifactBytes(model.read_bytes(), "cpu", 1), log)
        found = RayRecords(open_source(folder), opener, known_items(collection, "replace"), batch_size=16)
        report = index_images(None, found, collection, batch_size=16, on_progress=on_progress)
        assert killed[0] in workers_in(log)
        assert len(workers_in(log)) == 3, "of two workers, one was killed and started anew"
        assert counts(report) == (500, 0, 0, 0)
        assert collection.count() == 500
        for item, (key, data) in zip(collection.get(list(images)), images.items(), strict=True):
            assert item is not None
            assert item.label == key[0]
            np.testing.assert_allclose(item.vector, encoder.embed([data])[0], atol=1e-6)
        again = RayRecords(open_source(folder), opener, known_items(collection, "replace"))
        assert counts(index_images(None, again, collection)) == (0, 0, 500, 0)


@dataclass(frozen=True)
class OpenBroken:
    """Opens a model that fails when it embeds."""

    error: Exception

    def __call__(self) -> CountingModel:
        """Open it."""
        error = self.error

        class Broken(CountingModel):
            def embed_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
                raise error

        return Broken()


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (FailedPreconditionError("export it again"), FailedPreconditionError, "export it again"),
        (ZeroDivisionError("by zero"), InternalError, "a Ray worker failed: ZeroDivisionError: by zero"),
    ],
)
def test_what_fails_in_a_worker_ends_the_run_in_one_line(
    cluster: str, error: Exception, kind: type[ImagekinError], says: str
) -> None:
    found = RayRecords(ListSource(records(40)), OpenBroken(error), known_items(DictSink(), "replace"))
    with pytest.raises(kind) as caught:
        index_images(None, found, DictSink())
    assert str(caught.value) == says


def test_ctrl_c_stops_and_the_same_again_does_the_rest(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    monkeypatch.setattr("imagekin.index.ingest.ray_engine._FILES_IN_CHUNK", 16)
    sink, log = DictSink(), tmp_path / "log"

    def on_progress(seen: int, total: int | None, failed: int) -> None:
        if seen == 32:
            os.kill(os.getpid(), signal.SIGINT)

    def found(count: int) -> RayRecords:
        return RayRecords(ListSource(records(count)), OpenLogging(log), known_items(sink, "replace"))

    with pytest.raises(IndexInterruptedError) as caught:
        index_images(None, found(1500), sink, batch_size=16, on_progress=on_progress)
    written = caught.value.report.written
    assert 32 <= written == len(sink.items) < 1500
    assert counts(index_images(None, found(written + 50), sink)) == (50, 0, written, 0)


def every_source(folder: Path) -> list[str]:
    """Return sources of every kind that a worker reads, of which some are broken and some have broken members."""
    good = {f"a/{n}.png": png(n) for n in range(20)}
    photos = write_files(folder / "photos", {**good, "a/bad.png": b"no image", "b/notes.txt": b"no image either"})
    (photos / "a" / "gone.png").symlink_to("nowhere")
    archive = tar_bytes({f"c/{n}.png": png(100 + n) for n in range(20)})
    write_files(folder, {"cut.tar": archive[:14_000]})
    table = pa.table({"image": [png(200), b"no image there", None, png(203)], "key": ["p/0", "p/1", "p/2", "p/3"]})
    pq.write_table(table, folder / "table.parquet", row_group_size=2)
    rows = ["path,label,price", "photos/a/3.png,x,1", "photos/a/missing.png,x,2", "photos/a/4.png,y"]
    write_files(folder, {"list.csv": "\n".join(rows).encode()})
    found = [str(folder / name) for name in ("photos", "cut.tar", "table.parquet", "list.csv")]
    for number, make in enumerate(KINDS.values()):
        (folder / f"kind {number}").mkdir()
        found += make(folder / f"kind {number}", PICTURES).sources
    return found


@contextmanager
def stored(data: Path) -> Iterator[dict[str, tuple[object, ...]]]:
    """Yield what a collection holds, vectors rounded, and the thumbnails."""
    with Catalog(data) as catalog, catalog.open("c") as collection:
        items = collection.scroll(0, 1000)
        pictures = collection.thumbnails([item.key for item in items])
        yield {
            i.key: (i.label, i.payload, i.content_hash, i.vector.round(5).tolist(), picture)
            for i, picture in zip(items, pictures, strict=True)
        }


def test_the_command_says_and_stores_the_same_as_without_ray(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = every_source(tmp_path)
    model = str(tiny_artifact(tmp_path / "model.onnx"))
    said: list[tuple[int, dict[str, object], list[str], list[dict[str, str]]]] = []
    for name, options in (("local", []), ("ray", ["--engine", "ray", "--ray-workers", "2"])):
        table = tmp_path / f"{name}.parquet"
        place = ["--data-dir", str(tmp_path / name), "--report", str(table), "--json"]
        status = cli.run(["index", "c", *sources, "--model", model, *place, *options])
        captured = capsys.readouterr()
        figures = json.loads(captured.out.splitlines()[-1])
        for key in ("seconds", "images_per_second"):
            del figures[key]
        figures["failed"].sort(key=str)
        warned = sorted(line for line in captured.err.splitlines() if line.startswith(("imagekin:", "  ")))
        said.append((status, figures, warned, sorted(pq.read_table(table).to_pylist(), key=str)))
    assert said[0] == said[1]
    items = sum(len(make(tmp_path, PICTURES).items) for make in KINDS.values())
    assert (said[0][1]["written"], said[0][1]["failed_count"]) == (20 + 13 + 2 + items, 8 + 3)
    with stored(tmp_path / "local") as local, stored(tmp_path / "ray") as ray:
        assert local == ray
        assert all(picture is not None for *_, picture in ray.values())


def test_another_process_uses_the_cluster_by_its_address(cluster: str, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "photos", {f"a/{n}.png": png(n) for n in range(30)})
    model, out = tiny_artifact(tmp_path / "model.onnx"), tmp_path / "vectors.parquet"
    where = ["--engine", "ray", "--ray-address", cluster]
    done = run("embed", str(folder), "--model", str(model), "--out", str(out), "--json", *where)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 30
    table = pq.read_table(out)
    expected = Encoder.open(model).embed([png(int(Path(key).stem)) for key in table["key"].to_pylist()])
    np.testing.assert_allclose(np.stack(table["vector"].to_pylist()), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("address", "says", "status"),
    [("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1", 1), ("nonsense", "no HOST:PORT of a Ray cluster", 2)],
)
def test_a_cluster_that_does_not_answer_is_one_line(tmp_path: Path, address: str, says: str, status: int) -> None:
    folder = write_files(tmp_path / "photos", {"a/1.png": png(1)})
    model = str(tiny_artifact(tmp_path / "model.onnx"))
    command = ["index", "c", str(folder), "--model", model, "--data-dir", str(tmp_path / "data")]
    done = run(*command, "--engine", "ray", "--ray-address", address)
    assert (done.returncode, len(done.stderr.splitlines())) == (status, 1), done.stderr
    assert says in done.stderr
    assert not (tmp_path / "data").exists(), "nothing was made"


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_files(tmp_path / "photos", {"a/1.png": png(1)})
    model = str(tiny_artifact(tmp_path / "model.onnx"))
    command = ["index", "c", str(folder), "--model", model, "--data-dir", str(tmp_path / "data")]
    assert cli.run([*command, "--ray-workers", "2"]) == 2
    assert "--ray-workers goes with --engine ray" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "imagekin.index.ingest.ray_engine")
    assert cli.run([*command, "--engine", "ray"]) == 1
    assert "pip install '.[scale]'" in capsys.readouterr().err
