"""`kindred serve`."""

from pathlib import Path
from typing import Annotated

import typer

from kindred.commands import shared


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="[NAME=]FILE", help="Model artifact; may be repeated, the first is the default."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", help="Folder of the collections; none serves models only."),
    ] = None,
    address: Annotated[
        str, typer.Option("--address", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one.")
    ] = shared.DEFAULT_ADDRESS,
    read_only: Annotated[bool, typer.Option("--read-only", help="Serve the collections without ever writing.")] = False,
    allow_insecure: Annotated[
        bool, typer.Option("--allow-insecure", help="Let other machines connect, without encryption or a token.")
    ] = False,
    device: shared.Device = "auto",
    decode_workers: Annotated[
        int, typer.Option("--decode-workers", help="Threads that decode images; 0 is one per core.", min=0)
    ] = 0,
    encoder_threads: Annotated[
        int, typer.Option("--encoder-threads", help="Threads of one inference; 0 lets the encoder choose.", min=0)
    ] = 0,
    search_workers: Annotated[
        int, typer.Option("--search-workers", help="Threads that search and write; 0 chooses by cores.", min=0)
    ] = 0,
    max_batch_items: Annotated[
        int, typer.Option("--max-batch-items", help="Images, queries or items of one request.", min=1)
    ] = 256,
    max_image_bytes: Annotated[int, typer.Option("--max-image-bytes", help="Bytes of one image file.", min=1)] = 20
    * 2**20,
    max_pixels: Annotated[int, typer.Option("--max-pixels", help="Pixels of one image.", min=1)] = 64_000_000,
    drain_seconds: Annotated[
        float, typer.Option("--drain-seconds", help="Time that calls get to finish after SIGTERM.", min=0)
    ] = 30.0,
    port_file: Annotated[
        Path | None, typer.Option("--port-file", metavar="FILE", help="Gets the port as text once the server is ready.")
    ] = None,
) -> None:
    """Answer requests over gRPC until SIGTERM or Ctrl-C: embed, search, classify, keep collections."""
    from serving.server import serve as run
    from serving.settings import Limits, Settings, parse_model

    limits = Limits(max_batch_items=max_batch_items, max_image_bytes=max_image_bytes, max_pixels=max_pixels)
    run(
        Settings(
            address=address,
            models=tuple(parse_model(text) for text in model or ()),
            data_dir=data_dir,
            read_only=read_only,
            allow_insecure=allow_insecure,
            device=device,
            limits=limits,
            decode_workers=decode_workers,
            encoder_threads=encoder_threads,
            search_workers=search_workers,
            drain_seconds=drain_seconds,
            port_file=port_file,
        )
    )
