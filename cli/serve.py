"""`imagekin serve`."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from imagekin.cli.shared import options


def serve(
    ctx: typer.Context,
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
    store: options.Store = None,
    address: Annotated[
        str, typer.Option("--address", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one.")
    ] = options.DEFAULT_ADDRESS,
    read_only: Annotated[bool, typer.Option("--read-only", help="Serve the collections without ever writing.")] = False,
    allow_insecure: Annotated[
        bool, typer.Option("--allow-insecure", help="Let other machines connect, without encryption or a token.")
    ] = False,
    device: options.Device = "auto",
    index_device: Annotated[
        str,
        typer.Option("--index-device", metavar="auto|cpu|cuda", help="Where collections are searched, row by row."),
    ] = "auto",
    decode_workers: Annotated[
        int, typer.Option("--decode-workers", help="Threads that decode images; 0 is one per core.", min=0)
    ] = 0,
    encoder_sessions: Annotated[
        int, typer.Option("--encoder-sessions", help="Inferences at one time; 0 is as `imagekin tune` found.", min=0)
    ] = 0,
    encoder_threads: Annotated[
        int, typer.Option("--encoder-threads", help="Threads of one inference; 0 is as `imagekin tune` found.", min=0)
    ] = 0,
    encoder_batch: Annotated[
        int, typer.Option("--encoder-batch", help="Images of one inference; 0 is as `imagekin tune` found.", min=0)
    ] = 0,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="On a GPU, record each batch size as a CUDA graph.")
    ] = False,
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
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="Encrypt, with this certificate chain (PEM).")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="The certificate's private key (PEM).")
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option("--tls-client-ca", metavar="FILE", help="Let in only clients with a certificate of these (PEM)."),
    ] = None,
    tokens_file: Annotated[
        Path | None,
        typer.Option("--tokens-file", metavar="FILE", help="Let in only calls with a token of this file (TOML)."),
    ] = None,
    metrics_address: Annotated[
        str | None,
        typer.Option("--metrics-address", metavar="HOST:PORT", help="Serve /metrics for Prometheus here."),
    ] = None,
    metrics_port_file: Annotated[
        Path | None, typer.Option("--metrics-port-file", metavar="FILE", help="Gets the port of /metrics as text.")
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option("--otlp-endpoint", metavar="URL", help="Send a span of every call to this OTLP collector."),
    ] = None,
    log_level: Annotated[
        str, typer.Option("--log-level", metavar="debug|info|warning|error", help="debug has one line per call.")
    ] = "info",
    log_format: Annotated[
        str, typer.Option("--log-format", metavar="text|json", help="Form of the log on standard error.")
    ] = "text",
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show the settings and where each is from, and serve nothing.")
    ] = False,
) -> None:
    """Answer requests over gRPC until SIGTERM or Ctrl-C: embed, search, classify, keep collections.

    SIGHUP loads models, collections, certificates and tokens anew, without failing a call.
    """
    # Before gRPC is imported: its core would write a line of its own for each failed handshake of a port scanner.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from imagekin.serving.server import serve as run
    from imagekin.serving.settings import Limits, Settings, parse_model

    place = options.kept(ctx, data_dir, store)
    limits = Limits(max_batch_items=max_batch_items, max_image_bytes=max_image_bytes, max_pixels=max_pixels)
    settings = Settings(
        address=address,
        models=tuple(parse_model(text) for text in model or ()),
        data_dir=place if isinstance(place, Path) else None,
        store=place if isinstance(place, str) else None,
        read_only=read_only,
        allow_insecure=allow_insecure,
        device=device,
        index_device=index_device,
        limits=limits,
        decode_workers=decode_workers,
        encoder_sessions=encoder_sessions,
        encoder_threads=encoder_threads,
        encoder_batch=encoder_batch,
        cuda_graphs=cuda_graphs,
        search_workers=search_workers,
        drain_seconds=drain_seconds,
        port_file=port_file,
        metrics_address=metrics_address,
        metrics_port_file=metrics_port_file,
        log_level=log_level,
        log_format=log_format,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        tokens_file=tokens_file,
        otlp_endpoint=otlp_endpoint,
    )
    if print_config:
        print(effective(ctx))
        return
    run(settings)


def effective(ctx: Any) -> str:
    """Return a command's settings as a TOML table that could be imagekin.toml, each with where it is from."""
    sources = {"COMMANDLINE": "command line", "ENVIRONMENT": "environment", "DEFAULT_MAP": "file"}
    lines = [f"[{ctx.command.name}]"]
    for name, value in ctx.params.items():
        if name == "print_config":
            continue
        found = ctx.get_parameter_source(name)
        source = sources.get("" if found is None else found.name, "default")
        key = name.replace("_", "-")
        if value is None:
            lines.append(f"# {key} is not set")
        else:
            plain = [str(each) for each in value] if isinstance(value, list | tuple) else value
            # JSON's texts, numbers, truth values and lists are TOML's, too.
            written = json.dumps(str(plain) if isinstance(plain, Path) else plain, ensure_ascii=False)
            lines.append(f"{key} = {written}  # {source}")
    return "\n".join(lines)
