"""Index every kind of source here, in a server, and with the workers of a Ray cluster, and look at what is stored.

    python -m tests.index.ingest.container_runs

Each is read twice, and must have become the items that it holds, each once, the first time.
"""

import contextlib
import hashlib
import io
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagekin.cli import main as cli
from imagekin.client.sync_client import Client
from imagekin.index.local.catalog import Catalog
from tests.artifacts import tiny_artifact
from tests.e2e.processes import running_server
from tests.index.ingest.cluster import local_cluster
from tests.index.ingest.containers import KINDS, PICTURES, Given

WITH_RAY = ("--engine", "ray", "--ray-workers", "1")


@dataclass(frozen=True)
class Destination:
    """A place for collections.

    Attributes:
        model: the encoder.
        folder: the folder of collections, opened here; None when `address` is given.
        address: HOST:PORT of a server.
        engine: options of the command that say who embeds.
    """

    model: Path
    folder: Path | None = None
    address: str = ""
    engine: tuple[str, ...] = ()

    def index(self, collection: str, sources: list[str]) -> dict[str, Any]:
        """Run the command, and return its figures."""
        place = ["--address", self.address] if self.folder is None else ["--data-dir", str(self.folder)]
        output, errors = io.StringIO(), io.StringIO()
        command = ["index", collection, *sources, "--model", str(self.model), "--json", *place, *self.engine]
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = cli.run(command)
        assert status == 0, errors.getvalue()
        figures: dict[str, Any] = json.loads(output.getvalue().splitlines()[-1])
        return figures

    def stored(self, collection: str) -> dict[str, tuple[str | None, bytes | None]]:
        """Return label and content hash of every item by its key."""
        if self.folder is None:
            with Client(self.address) as client:
                return {item.key: (item.label, item.content_hash) for item in client.scroll(collection)}
        with Catalog(self.folder) as catalog, catalog.open(collection) as opened:
            return {item.key: (item.label, item.content_hash) for item in opened.items()}


def check(destination: Destination, kind: str, given: Given) -> None:
    """Index a source twice, and compare what is counted and stored with what it holds."""
    expected = {key: (label, hashlib.sha256(data).digest()) for key, (label, data) in given.items.items()}
    collection = re.sub("[^a-z0-9]", "-", f"{kind} {'ray' if destination.engine else 'here'}".lower())
    first = destination.index(collection, given.sources)
    assert destination.stored(collection) == expected
    assert sorted(one["key"] for one in first["failed"]) == given.failed
    assert (first["written"], first["replaced"]) == (len(expected), 0)
    again = destination.index(collection, given.sources)
    assert (again["written"], again["updated"], again["skipped"]) == (0, 0, len(expected))
    assert destination.stored(collection) == expected


def main() -> None:
    """Run all kinds on all destinations."""
    with tempfile.TemporaryDirectory() as name, local_cluster():
        folder = Path(name)
        model = tiny_artifact(folder / "model.onnx")
        with running_server(model, folder / "server") as server:
            destinations = {
                "here": Destination(model, folder / "here"),
                "server": Destination(model, address=server.address),
                "here, by Ray": Destination(model, folder / "here", engine=WITH_RAY),
                "server, by Ray": Destination(model, address=server.address, engine=WITH_RAY),
            }
            for number, (kind, make) in enumerate(KINDS.items()):
                (folder / str(number)).mkdir()
                given = make(folder / str(number), PICTURES)
                for shown, destination in destinations.items():
                    check(destination, kind, given)
                    print(f"{kind}, {shown}: {len(given.items)} items, each once")


if __name__ == "__main__":
    main()
