"""A full disk is said at once, and what is there is served on."""

from pathlib import Path

import numpy as np
import pytest

from imagekin import Client, Item
from imagekin.errors import ResourceExhaustedError
from imagekin.serving.settings import Settings
from tests.disks import small_disk
from tests.serving.running import running

DIM = 256


def fill(client: Client, kept: list[str]) -> None:
    """Write items until that fails, and note the keys of those that were acknowledged."""
    for number in range(1000):
        vectors = np.random.default_rng(number).standard_normal((50, DIM))
        items = [Item(f"{number}-{n}", vector=vector) for n, vector in enumerate(vectors)]
        client.upsert("shop", items)
        kept += [item.key for item in items]


def test_a_full_disk_is_said_at_once_and_reads_go_on(model_path: Path, tmp_path: Path) -> None:
    kept: list[str] = []
    with small_disk(tmp_path / "small", megabytes=3) as folder:
        settings = Settings(address="127.0.0.1:0", models=(("tiny", model_path),), data_dir=folder)
        with running(settings) as server, Client(f"127.0.0.1:{server.server.port}") as client:
            client.create_collection("shop", space="ik1-a", dim=DIM)
            with pytest.raises(ResourceExhaustedError, match="free some space") as caught:
                fill(client, kept)
            # Without a delay no client tries again.
            assert caught.value.retry_after is None
            assert [item.key for item in client.scroll("shop")] == kept != []
            assert client.search(keys=kept[-1:], collection="shop", k=1)[0]
