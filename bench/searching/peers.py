"""The peers of bench/search.py: each stores (key, vector) pairs on disk or in memory, as its own guide recommends.

A peer that is not installed is left out, and said to be. Vectors are float32 [N, D] of unit length, similarity is the
inner product.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


class Peer(Protocol):
    """Another store."""

    def add(self, first: int, vectors: Vectors) -> None:
        """Store vectors under the numbers from `first` on."""

    def search(self, query: Vectors, k: int) -> list[int]:
        """Return the numbers of the nearest vectors of one query, [D]."""


class Lance:
    """LanceDB, a table in a folder, without an index (exact)."""

    module = "lancedb"

    def __init__(self, folder: Path, dim: int) -> None:
        import lancedb
        import pyarrow as pa

        self._pa, self._dim = pa, dim
        schema = pa.schema([pa.field("number", pa.int64()), pa.field("vector", pa.list_(pa.float32(), dim))])
        self.table: Any = lancedb.connect(str(folder / "lance")).create_table("t", schema=schema)

    def add(self, first: int, vectors: Vectors) -> None:
        """Store vectors under the numbers from `first` on."""
        numbers = self._pa.array(np.arange(first, first + len(vectors)))
        flat = self._pa.FixedSizeListArray.from_arrays(self._pa.array(vectors.reshape(-1)), self._dim)
        self.table.add(self._pa.table({"number": numbers, "vector": flat}, schema=self.table.schema))

    def search(self, query: Vectors, k: int, where: str = "") -> list[int]:
        """Return the numbers of the nearest vectors of one query, [D]."""
        search = self.table.search(query).distance_type("dot").select(["number", "_distance"]).limit(k)
        if where:
            search = search.where(where, prefilter=True)
        found: list[int] = search.to_arrow()["number"].to_pylist()
        return found


class Qdrant:
    """Qdrant's embedded engine, in memory."""

    module = "qdrant_client"

    def __init__(self, folder: Path, dim: int) -> None:
        from qdrant_client import QdrantClient, models

        self._models = models
        self._client = QdrantClient(":memory:")
        self._client.create_collection("t", models.VectorParams(size=dim, distance=models.Distance.DOT))

    def add(self, first: int, vectors: Vectors) -> None:
        """Store vectors under the numbers from `first` on."""
        self._client.upsert(
            "t",
            self._models.Batch(ids=list(range(first, first + len(vectors))), vectors=vectors.tolist()),
        )

    def search(self, query: Vectors, k: int) -> list[int]:
        """Return the numbers of the nearest vectors of one query, [D]."""
        return [int(point.id) for point in self._client.query_points("t", query=query.tolist(), limit=k).points]


class Milvus:
    """Milvus' embedded engine, a file."""

    module = "milvus_lite"

    def __init__(self, folder: Path, dim: int) -> None:
        from pymilvus import MilvusClient

        self._client = MilvusClient(str(folder / "milvus.db"))
        self._client.create_collection("t", dimension=dim, metric_type="IP", consistency_level="Strong")

    def add(self, first: int, vectors: Vectors) -> None:
        """Store vectors under the numbers from `first` on."""
        for begin in range(0, len(vectors), 2000):
            rows = vectors[begin : begin + 2000]
            self._client.insert("t", [{"id": first + begin + n, "vector": row} for n, row in enumerate(rows)])

    def search(self, query: Vectors, k: int) -> list[int]:
        """Return the numbers of the nearest vectors of one query, [D]."""
        return [hit["id"] for hit in self._client.search("t", data=[query], limit=k)[0]]


PEERS: dict[str, Any] = {"lancedb": Lance, "qdrant": Qdrant, "milvus-lite": Milvus}


def present(names: Iterator[str] | list[str]) -> dict[str, Any]:
    """Return the named peers that are installed, and print the others."""
    found = {}
    for name in names:
        if importlib.util.find_spec(PEERS[name].module) is None:
            print(f"{name}: left out, {PEERS[name].module} is not installed")
        else:
            found[name] = PEERS[name]
    return found


def opened(name: str, kind: Any, folder: Path, vectors: Vectors) -> Any:
    """Return a peer filled with vectors; print the reason and return None when it fails."""
    try:
        peer = kind(folder, vectors.shape[1])
        with contextlib.suppress(NotImplementedError):
            peer.add(0, vectors)
        return peer
    except Exception as error:
        print(f"{name}: left out, {type(error).__name__}: {str(error).splitlines()[0][:120]}")
        return None
