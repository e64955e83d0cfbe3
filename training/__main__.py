"""Run `imagekin train` alone: `python -m imagekin.training DATA …` or `torchrun -m imagekin.training DATA …`."""

import sys

import typer

from imagekin.errors import ImagekinError
from imagekin.machine import is_first
from imagekin.training.loop.process_errors import must_report, wait_for_report
from imagekin.training.options import train_command


def main() -> int:
    """Run the command and return its exit status: 0 done, 1 failed, 2 wrong use, 130 stopped."""
    app = typer.Typer(add_completion=False)
    app.command()(train_command)
    try:
        app(prog_name="python -m imagekin.training", standalone_mode=False)
    except ImagekinError as error:
        return say(str(error), error.exit_status, aloud=must_report(error))
    except (KeyboardInterrupt, typer.Abort):
        return say("stopped; the same command with --resume goes on", 130, aloud=is_first())
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        # Wrong use; the command-line library has no public name for the base class of these.
        return say(error.format_message(), 2, aloud=is_first())
    return 0


def say(message: str, status: int, *, aloud: bool) -> int:
    """Print the message if `aloud`, else wait for the process that prints it; return the exit status."""
    if aloud:
        print(f"imagekin train: {message}", file=sys.stderr, flush=True)
    else:
        wait_for_report()
    return status


if __name__ == "__main__":
    sys.exit(main())
