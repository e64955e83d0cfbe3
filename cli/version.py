"""`imagekin version`."""

from imagekin.command_options import AsJson


def version(
    as_json: AsJson = False,
) -> None:
    """Show the version, and those of the engines that are installed."""
    import platform
    from importlib import metadata

    from imagekin.cli.shared.console import print_json
    from imagekin.version import VERSION

    engines: dict[str, str] = {}
    for name in ("onnxruntime", "onnxruntime-gpu", "faiss-cpu", "faiss-gpu", "torch", "grpcio", "numpy"):
        try:
            engines[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if as_json:
        print_json({"version": VERSION, "python": platform.python_version(), "engines": engines})
        return
    shown = ", ".join(f"{name} {number}" for name, number in engines.items())
    print(f"imagekin {VERSION} (Python {platform.python_version()}; {shown})")
