"""`kindred embed`."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kindred.commands import shared

if TYPE_CHECKING:
    from kindred.types import Vector


def embed(
    images: shared.Sources,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.npy", help="Write float32 [N, D] there, and the keys to FILE.keys."),
    ] = None,
    address: shared.Address = shared.DEFAULT_ADDRESS,
    model: Annotated[str, typer.Option("--model-name", metavar="NAME", help="One of the server's models.")] = "",
    token: shared.Token = None,
    tls: shared.TlsFlag = False,
    ca: shared.CaFile = None,
    timeout: shared.Timeout = 60.0,
    as_json: shared.AsJson = False,
) -> None:
    """Embed images through a server."""
    from kindred import console
    from kindred.inputs import Tally, answered, reading

    tally = Tally()
    kept: list[dict[str, Any]] = []
    started = time.perf_counter()
    with (
        shared.connect(address, token, tls, ca, timeout) as client,
        _output(out) as write,
        reading(images, "embed") as (records, advance),
        console.Rows(["key", "embedding"], silent=as_json or out is not None) as rows,
    ):
        ask = lambda images: client.iter_embed(images, model=model)  # noqa: E731
        for named, vector in answered(records, ask, tally, advance):
            if write is not None:
                write.add(named.key, vector)
            elif as_json:
                kept.append({"key": named.key, "embedding": vector.tolist()})
            rows.add(named.key, " ".join(f"{value:.6g}" for value in vector))
    seconds = time.perf_counter() - started
    console.list_failures(tally.failed, tally.failed_count)
    if as_json:
        where = {"out": str(out)} if out is not None else {"embeddings": kept}
        console.print_json({**where, **console.totals(tally, seconds)})
    else:
        console.say(console.summary("embedded", tally, seconds))
    console.fail_if_nothing(tally)


class NpyWriter:
    """Writes rows of unknown number to a .npy file, and their keys beside it, a line each.

    Args:
        vectors: open for writing bytes, with seek.
        keys: open for writing bytes.
    """

    def __init__(self, vectors: Any, keys: Any) -> None:
        self._vectors = vectors
        self._keys = keys
        self._shape = (0, 0)

    def add(self, key: str, vector: "Vector") -> None:
        """Write one row [D] and its key."""
        if self._shape[0] == 0:
            self._shape = (0, len(vector))
            self._header()
        self._vectors.write(vector.astype("<f4").tobytes())
        self._keys.write(key.encode() + b"\n")
        self._shape = (self._shape[0] + 1, self._shape[1])

    def finish(self) -> None:
        """Write the number of rows into the header, which has room for it to grow."""
        self._vectors.seek(0)
        self._header()

    def _header(self) -> None:
        from numpy.lib import format as npy

        npy.write_array_header_1_0(self._vectors, {"descr": "<f4", "fortran_order": False, "shape": self._shape})


@contextmanager
def _output(out: Path | None) -> Iterator[NpyWriter | None]:
    """Open FILE.npy and FILE.keys under temporary names; they get their names only when all went well."""
    if out is None:
        yield None
        return
    names = [out, out.with_suffix(".keys")]
    parts = [name.with_name(f".{name.name}.{os.getpid()}.part") for name in names]
    try:
        with parts[0].open("wb") as vectors, parts[1].open("wb") as keys:
            writer = NpyWriter(vectors, keys)
            yield writer
            writer.finish()
        for part, name in zip(parts, names, strict=True):
            part.replace(name)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
