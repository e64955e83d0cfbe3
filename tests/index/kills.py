"""Kills `imagekin index` again and again, finishes it, and looks at what is stored.

    python -m tests.index.kills --runs 50 [--every-batch] [--address] [--kinds tar,zip] [--images 600]
        [--batch-size 16] [--seed 0] [--folder DIR]

Each run indexes a source into an empty collection, is killed with SIGKILL at a random moment (in most runs soon after a
random number of images was stored, else at any time from its start), and is then run again to its end. The runs take
turns with all kinds of sources of `tests.index.ingest.containers`. With `--every-batch`, each kind is killed after each
of its batches instead, and `--runs` counts for nothing. With `--address` the collection is a server's, and either the
client or the server is killed; a killed server is started again at once, and the client may or may not go on by itself.
In the end every image must be stored once, with its own content; what had been stored before the kill must not be
embedded again. Batches that had been embedded and were not stored yet are counted: they are what a kill costs.

Processes are forked from one that has loaded everything, so that a run costs a second; the parent itself opens nothing.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagekin.cli import index as _index  # noqa: F401
from imagekin.cli import main as cli
from imagekin.client import sync_client  # noqa: F401
from imagekin.encoder.runtime.session import Encoder
from imagekin.index.local import catalog  # noqa: F401  loaded before the fork
from imagekin.serving import server  # noqa: F401
from tests.artifacts import tiny_artifact
from tests.index.ingest.containers import WHOLE, Given
from tests.sources.pictures import png

PATIENCE = 120.0
NAME = "shop"


def spawn(arguments: list[str], said: Path, embedded: Path | None = None) -> int:
    """Run the command in a forked process, its output in a file, and return its process id.

    Args:
        arguments: the command's.
        said: where its output goes.
        embedded: gets a byte for every image that was embedded.
    """
    sys.stdout.flush()
    said.write_bytes(b"")
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if embedded is not None:
            _count_into(embedded)
        status = cli.run(arguments)
    finally:
        os._exit(status)


def _count_into(path: Path) -> None:
    count = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    embed = Encoder.embed_pixels

    def counted(self: Encoder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        vectors = embed(self, pixels)
        os.write(count, b"." * len(pixels))
        return vectors

    Encoder.embed_pixels = counted  # type: ignore[method-assign]


def wait_for(pid: int, seconds: float = PATIENCE) -> int | None:
    """Return the exit status of a process, negative for a signal; None when it has not ended in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def kill(pid: int) -> bool:
    """Kill a process, and return whether it was still running."""
    os.kill(pid, signal.SIGKILL)
    return wait_for(pid) == -signal.SIGKILL


class Trial:
    """The same images in sources of several kinds, indexed and killed again and again.

    Args:
        folder: for everything that is written.
        kinds: the kinds of sources.
        images: how many images each has.
        batch_size: images that are stored at once.
        remote: whether the collection is a server's.
    """

    def __init__(self, folder: Path, kinds: list[str], images: int, batch_size: int, remote: bool) -> None:
        pictures = {f"{number % 7}/{number}.png": png(number, 24) for number in range(images)}
        self.sources: dict[str, Given] = {}
        for number, kind in enumerate(kinds):
            (folder / f"source {number}").mkdir()
            self.sources[kind] = WHOLE[kind](folder / f"source {number}", pictures)
        self.model = tiny_artifact(folder / "model.onnx")
        self.folder, self.remote, self.batch_size = folder, remote, batch_size
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.embedded = folder / "embedded"
        self.server = 0

    @property
    def database(self) -> Path:
        """The collection's database."""
        return self.folder / "data" / "collections" / NAME / "items.sqlite"

    def begin(self) -> None:
        """Begin with an empty data folder, and a server on it."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        self.embedded.unlink(missing_ok=True)
        if self.remote:
            self.serve()

    def serve(self) -> None:
        """Start the server and wait until it is ready."""
        options = ["--model", str(self.model), "--data-dir", str(self.folder / "data"), "--address", self.address]
        self.server = spawn(["serve", *options], self.folder / "server.log")
        deadline = time.monotonic() + PATIENCE
        while "serving on" not in (self.folder / "server.log").read_text():
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.01)

    def end(self) -> None:
        """Stop the server."""
        if self.server:
            os.kill(self.server, signal.SIGTERM)
            assert wait_for(self.server) == 0, (self.folder / "server.log").read_text()
            self.server = 0

    def index(self, kind: str) -> int:
        """Start `imagekin index` of a kind of source and return its process id."""
        where = ["--address", self.address] if self.remote else ["--data-dir", str(self.folder / "data")]
        options = [
            "--model",
            str(self.model),
            *where,
            "--batch-size",
            str(self.batch_size),
            "--timeout",
            "20",
            "--json",
        ]
        return spawn(["index", NAME, *self.sources[kind].sources, *options], self.folder / "index.log", self.embedded)

    def report(self) -> dict[str, int]:
        """Return what `imagekin index` said at its end."""
        found: dict[str, int] = json.loads((self.folder / "index.log").read_text().splitlines()[-1])
        return found

    def stored(self) -> dict[str, bytes]:
        """Return key and content hash of what is on disk."""
        with contextlib.suppress(sqlite3.OperationalError):  # not made yet
            with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=20)) as connection:
                rows = connection.execute("SELECT key, content_hash FROM item").fetchall()
            assert len({key for key, _ in rows}) == len(rows), "a key is there twice"
            return dict(rows)
        return {}

    def run(self, kind: str, after: int, delay: float, kill_server: bool) -> tuple[int, int]:
        """Index a kind of source, kill `delay` seconds after so many images were stored, and finish.

        Returns:
            How many images had been stored when it was killed, and how many were embedded twice.
        """
        self.begin()
        expected = {key: hashlib.sha256(data).digest() for key, (_, data) in self.sources[kind].items.items()}
        indexer = self.index(kind)
        deadline = time.monotonic() + PATIENCE
        while len(self.stored()) < after and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        if self.remote and kill_server:
            assert kill(self.server)
            survived = len(self.stored())
            self.serve()
            wait_for(indexer)
        else:
            kill(indexer)
            survived = len(self.stored())
        status = wait_for(self.index(kind))
        assert status == 0, (self.folder / "index.log").read_text()
        report = self.report()
        assert report["failed_count"] == report["replaced"] == report["duplicates"] == 0, report
        assert report["written"] + report["skipped"] == len(expected), report
        assert report["written"] <= len(expected) - survived, "what was stored has been stored again"
        self.end()
        assert self.stored() == expected, "an image is missing or another one's"
        return survived, self.embedded.stat().st_size - len(expected)


def main(arguments: list[str] | None = None) -> None:
    """Run the trials and print what they found; raises AssertionError at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--every-batch", action="store_true", help="kill after each batch")
    parser.add_argument("--kinds", default=",".join(WHOLE), help="of tests.index.ingest.containers")
    parser.add_argument("--address", action="store_true", help="index into a server")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)  # noqa: S311
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        kinds = options.kinds.split(",")
        trial = Trial(Path(folder), kinds, options.images, options.batch_size, options.address)
        found = []
        try:
            trial.begin()
            started = time.monotonic()
            assert wait_for(trial.index(kinds[0])) == 0, (Path(folder) / "index.log").read_text()
            whole = time.monotonic() - started
            trial.end()
            if options.every_batch:
                moments = [(kind, after) for kind in kinds for after in range(1, options.images, options.batch_size)]
            else:
                moments = [
                    (kinds[run % len(kinds)], chance.randrange(1, options.images) if chance.random() < 0.8 else 0)
                    for run in range(options.runs)
                ]
            for kind, after in moments:
                delay = chance.uniform(0, 0.02) if after else chance.uniform(0, whole)
                found.append(trial.run(kind, after, delay, chance.random() < 0.5))
        finally:
            if trial.server:
                kill(trial.server)
    survived = [one for one, _ in found]
    redone = [twice for _, twice in found]
    figures = {
        "runs": len(found),
        "kinds": len(kinds),
        "destination": "server" if options.address else "local",
        "images": options.images,
        "missing": 0,
        "twice": 0,
        "killed_half_way": sum(0 < one < options.images for one in survived),
        "redone_images_max": max(redone),
        "redone_batches_max": max(redone) / options.batch_size,
        "redone_more_than_a_batch": sum(one > options.batch_size for one in redone),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
