"""`imagekin tune`."""

from pathlib import Path
from typing import Annotated

import typer

from imagekin.cli.shared import options
from imagekin.command_options import AsJson


def tune(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model artifact; its tuning is saved beside it.")],
    device: options.DeviceOption = "auto",
    seconds: Annotated[float, typer.Option("--seconds", help="Time for one figure.", min=0.01, max=60.0)] = 0.4,
    as_json: AsJson = False,
) -> None:
    """Measure how a model runs best on this machine; `imagekin serve` then runs it so."""
    import sys

    from imagekin.cli.shared.console import print_json
    from imagekin.encoder.runtime import tuning

    def tell(line: str) -> None:
        if sys.stderr.isatty():
            print(line, file=sys.stderr)

    best, *others = tuning.measure(model, device=device, seconds=seconds, progress=tell)
    path = tuning.save(model, tuning.device_of(device), best)
    found = best.tuning
    if as_json:
        answer = {"sessions": found.sessions, "threads": found.threads, "batch": found.batch}
        print_json(answer | {"images_per_second": round(best.rate, 2), "file": str(path)})
        return
    slowest = min((best, *others), key=lambda each: each.rate)
    print(
        f"{found.sessions} sessions × {found.threads} threads, batches of {found.batch}: {best.rate:.1f} images/s "
        f"(the slowest setting: {slowest.rate:.1f}); saved to {path}"
    )
