"""Into a real store: what has been told as done is on disk, and a run may be killed and run again."""

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from imagekin.encoder.runtime.session import Encoder
from imagekin.index.ingest.pipeline import index_images
from imagekin.index.local.catalog import Catalog
from imagekin.sources.open import open_source
from tests.artifacts import tiny_artifact
from tests.sources.pictures import png, tar_bytes, write_files


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder.open(tiny_artifact(tmp_path_factory.mktemp("model") / "model.onnx"), threads=1)


def test_a_real_model_and_store_give_the_same_whatever_the_batch_size(tmp_path: Path, encoder: Encoder) -> None:
    images = {f"{'ab'[n % 2]}/{n}.png": png(n) for n in range(30)}
    folder = write_files(tmp_path / "folder", images)
    archive = write_files(tmp_path, {"x.tar.gz": tar_bytes(images, "w:gz")}) / "x.tar.gz"
    with Catalog(tmp_path / "data") as catalog:
        for name, source, size in (("one", folder, 1), ("all", folder, 64), ("tar", archive, 7)):
            with catalog.create(name, space=encoder.metadata.space, dim=encoder.metadata.dim) as collection:
                report = index_images(encoder, open_source(source), collection, batch_size=size)
                assert (report.written, report.replaced, report.seen) == (30, 0, 30)
                for item, (key, data) in zip(collection.get(list(images)), images.items(), strict=True):
                    assert item is not None
                    assert item.label == key[0]
                    np.testing.assert_allclose(item.vector, encoder.embed([data])[0], atol=1e-6)


INDEX = """
import sys, time
from pathlib import Path
from imagekin.encoder.runtime.session import Encoder
from imagekin.index.ingest.pipeline import index_images
from imagekin.index.local.catalog import Catalog
from imagekin.sources.open import open_source
from imagekin.errors import NotFoundError

model, source, data = map(Path, sys.argv[1:4])
pause = float(sys.argv[4])
encoder = Encoder.open(model, threads=1)
with Catalog(data) as catalog:
    try:
        collection = catalog.open("c")
    except NotFoundError:
        collection = catalog.create("c", space=encoder.metadata.space, dim=encoder.metadata.dim)
    def on_progress(seen, total, failed):
        print(seen, flush=True)
        time.sleep(pause)  # between one write and the next
    report = index_images(encoder, open_source(source), collection, batch_size=16, on_progress=on_progress)
    print("done", report.written, report.replaced, report.skipped, report.failed_count)
"""


def test_killed_at_any_moment_and_run_again_nothing_is_missing_and_nothing_twice(
    tmp_path: Path, encoder: Encoder
) -> None:
    count = 600
    images = {f"{n % 7}/{n}.png": png(n, 64) for n in range(count)}
    archive = write_files(tmp_path, {"x.tar": tar_bytes(images)}) / "x.tar"
    command = [sys.executable, "-c", INDEX, str(tiny_artifact(tmp_path / "m.onnx")), str(archive), str(tmp_path / "d")]

    survived = 0
    for goal, delay in ((1, 0.0), (100, 0.05), (250, 0.13)):  # in the pause, at its end, some writes later
        with subprocess.Popen([*command, "0.05"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            progress = next((int(line) for line in process.stdout if int(line) >= goal), None)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        assert progress is not None
        with Catalog(tmp_path / "d") as catalog, catalog.open("c") as collection:
            assert max(goal, survived) <= collection.count() < count, "what was told as done is on disk"
            survived = collection.count()
    last = subprocess.run([*command, "0"], capture_output=True, text=True, check=True, timeout=60)
    assert last.stdout.splitlines()[-1] == f"done {count - survived} 0 {survived} 0"
    with Catalog(tmp_path / "d") as catalog, catalog.open("c") as collection:
        items = collection.get(list(images))
        assert collection.count() == count
    for item, data in zip(items, images.values(), strict=True):
        assert item is not None
        assert item.content_hash == hashlib.sha256(data).digest()
        np.testing.assert_allclose(item.vector, encoder.embed([data])[0], atol=1e-6)
