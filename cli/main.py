"""Run the `imagekin` command: find the subcommand, apply its settings, turn errors into one line and an exit status.

Exit status: 0 done, 1 failed, 2 wrong use, 130 stopped by Ctrl-C. A subcommand's module is loaded only when it is asked
for, and torch, FAISS, ONNX Runtime and gRPC only when it runs.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from imagekin.cli.shared import settings_file
from imagekin.errors import ImagekinError, InvalidArgumentError, NotFoundError
from imagekin.version import VERSION, install_command

# Name → where the function or the Typer app is. The order is that of `imagekin --help`.
COMMANDS = {
    "demo": "imagekin.cli.demo:demo",
    "train": "imagekin.training.options:train_command",
    "evaluate": "imagekin.training.evaluation.options:evaluate_command",
    "export": "imagekin.training.evaluation.options:export_command",
    "report": "imagekin.training.report.options:report_command",
    "compare": "imagekin.training.report.options:compare_command",
    "sweep": "imagekin.training.report.options:sweep_command",
    "adopt": "imagekin.cli.adopt:adopt",
    "models": "imagekin.cli.models:models",
    "adapt": "imagekin.training.adaptation.options:adapt_command",
    "index": "imagekin.cli.index:index",
    "thumbnails": "imagekin.cli.thumbnails:thumbnails",
    "map": "imagekin.cli.map:make",
    "collection": "imagekin.cli.collection.commands:app",
    "serve": "imagekin.cli.serve:serve",
    "tune": "imagekin.cli.tune:tune",
    "embed": "imagekin.cli.embed:embed",
    "search": "imagekin.cli.search:search",
    "classify": "imagekin.cli.classify:classify",
    "review": "imagekin.cli.review.command:review",
    "health": "imagekin.cli.health:health",
    "version": "imagekin.cli.version:version",
}
# Modules that each extra installs.
_EXTRAS = {
    "cpu": {"faiss", "onnxruntime", "grpc_health", "grpc_reflection", "prometheus_client"},
    "map": {"umapers"},
    "otel": {"opentelemetry"},
    "parquet": {"pyarrow"},
    "remote": {"aiohttp", "fsspec", "gcsfs", "s3fs"},
    "scale": {"ray"},
    "train": {
        *("torch", "torchvision", "timm", "safetensors", "sklearn", "scipy"),
        *("onnx", "onnxscript", "tensorboard", "matplotlib"),
    },
}
_HELP = """From a folder of images to a service that knows which images are alike and what they are.

Every option --some-name of COMMAND may also be given as IMAGEKIN_COMMAND_SOME_NAME in the environment, or as \
some-name in imagekin.toml, at its top or in the command's own table. The command line comes first, then the \
environment, then the file. IMAGEKIN_ADDRESS, IMAGEKIN_TOKEN, IMAGEKIN_CA, IMAGEKIN_CLIENT_CERT, IMAGEKIN_CLIENT_KEY, \
IMAGEKIN_DATA_DIR, IMAGEKIN_MODEL and IMAGEKIN_DEVICE are for all commands.
"""
_INTERRUPTED = 130
_BROKEN_PIPE = 141


class _StoppedError(Exception):
    """Ctrl-C, wrapped because the command-line library would swallow it."""


class _PipeClosedError(Exception):
    """The reader of standard output has gone; wrapped likewise."""


class _LazyGroup(TyperGroup):
    """Group that loads a subcommand's module when it is named, or when all are listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the subcommands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load a subcommand, None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = settings_file.with_environment(
                load_command(cmd_name), f"IMAGEKIN_{cmd_name.upper()}"
            )
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the subcommand; the error for an unknown one names the nearest."""
        if args[0] not in COMMANDS:
            # The base class suggests the names of this table, which is filled only as commands are loaded.
            names: Any = dict.fromkeys(COMMANDS)
            self.commands.update(names)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _PipeClosedError from error
        except KeyboardInterrupt as error:
            raise _StoppedError(str(error) or "stopped") from error


def load_command(name: str) -> Any:
    """Import a subcommand and return it as the command-line library's object."""
    module, attribute = COMMANDS[name].split(":")
    return build_command(name, getattr(importlib.import_module(module), attribute))


def build_command(name: str, target: Any) -> Any:
    """Return a function with typer's annotations, or a Typer app, as the command-line library's object."""
    app = target
    if not isinstance(target, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command(name)(target)
    command = typer.main.get_command(app)
    command.name = name
    return command


def _show_version(asked: bool) -> None:
    if asked:
        print(f"imagekin {VERSION}")
        raise typer.Exit


def root(
    ctx: typer.Context,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Settings in TOML; default ./imagekin.toml where there is one."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Find the settings file and take the subcommand's defaults from it."""
    for warning in settings_file.misspelt(os.environ, ctx.command, ctx):
        print("imagekin:", warning, file=sys.stderr)
    named = config_file or (Path(os.environ["IMAGEKIN_CONFIG"]) if os.environ.get("IMAGEKIN_CONFIG") else None)
    ctx.default_map = settings_file.load(named, ctx.command, ctx)


def main() -> None:
    """Run the command on the process's arguments and exit with its status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status; errors become one line on standard error."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]  # as git has it
    app = typer.Typer(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
    app.callback(help=_HELP)(root)
    try:
        status = typer.main.get_command(app).main(
            list(arguments) or ["--help"], prog_name="imagekin", standalone_mode=False
        )
        sys.stdout.flush()
    except Exception as error:
        if os.environ.get("IMAGEKIN_DEBUG"):
            raise
        return report(error, as_json="--json" in arguments)
    return status if isinstance(status, int) else 0


def report(error: Exception, *, as_json: bool = False) -> int:
    """Print an error as one line on standard error and return the exit status.

    Args:
        error: what ended the command.
        as_json: print `{"error": {"code", "message"}}` as the last line of standard output, too.
    """
    if isinstance(error, _PipeClosedError):
        # Python flushes standard output once more at the end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    message, status = described(error)
    line = " ".join(message.split())
    print("imagekin:", line, file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"code": _code(error, status), "message": line}}, ensure_ascii=False), flush=True)
    return status


def _code(error: Exception, status: int) -> str:
    """Return the name of an error's status code, as a server would answer it."""
    if isinstance(error, _StoppedError):
        return "CANCELLED"
    if isinstance(error, ImagekinError):
        return error.code
    return InvalidArgumentError.code if status == InvalidArgumentError.exit_status else "UNKNOWN"


def described(error: Exception) -> tuple[str, int]:
    """Return an error's message and exit status."""
    if isinstance(error, _StoppedError):
        return str(error), _INTERRUPTED
    if isinstance(error, NotFoundError):
        from imagekin.index.unknown import UnknownCollectionError

        # A collection in a folder here: whoever can read the folder may know all names in it.
        error = error.suggesting() if isinstance(error, UnknownCollectionError) else error
    if isinstance(error, ImagekinError):
        return str(error), error.exit_status
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_of(error.name or "")):
        return f"this needs {error.name}, which is not installed: {install_command(extra)}", 1
    if hasattr(error, "format_message"):
        # Wrong use. The command-line library has no public name for the base class of these.
        usage: Any = error
        context = getattr(usage, "ctx", None)
        path = context.command_path if context is not None else "imagekin"
        message = usage.format_message().rstrip(".").replace("Value error, ", "")
        if context is not None and getattr(getattr(usage, "param", None), "param_type_name", "") == "argument":
            wanted = [one.metavar or one.name for one in context.command.params if one.param_type_name == "argument"]
            message = f"{message} of `{' '.join([path, *wanted])}`"
        link = " See" if message.endswith("?") else "; see"
        return f"{message}{link} '{path} --help'", int(usage.exit_code)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 1
    return f"{type(error).__name__}: {error} (a bug; IMAGEKIN_DEBUG=1 shows where)", 1


def _extra_of(module: str) -> str:
    """Return the extra that installs a module, empty when none does."""
    top = module.split(".")[0]
    return next((extra for extra, modules in _EXTRAS.items() if top in modules), "")
