"""`python -m training DATA …` and `torchrun -m training DATA …`: the options of `kindred train`, without the rest."""

import sys

import typer

from encoder.errors import KindredError
from training.options import train_command
from training.together import has_to_say, is_first


def main() -> int:
    """Run the command and return its exit status: 0 done, 1 failed, 2 wrong use, 130 stopped."""
    app = typer.Typer(add_completion=False)
    app.command()(train_command)
    try:
        app(prog_name="python -m training", standalone_mode=False)
    except KindredError as error:
        if has_to_say(error):
            print(f"kindred train: {error}", file=sys.stderr)
        return error.exit_status
    except (KeyboardInterrupt, typer.Abort):
        if is_first():
            print("kindred train: stopped; the same command with --resume goes on", file=sys.stderr)
        return 130
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        # Wrong use; the command-line library has no public name for the base class of these.
        if is_first():
            print(f"kindred train: {error.format_message()}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
