"""Record the commands and the machine of a run: `provenance.json` in its folder."""

import json
import platform
import shlex
import sys
from pathlib import Path

import torch

from imagekin import files
from imagekin.encoder.metadata import JSON
from imagekin.machine import cores
from imagekin.training.settings import PROVENANCE_FILE
from imagekin.version import VERSION

_COMMANDS = 100
"""Commands remembered: the first, and the last ones."""


def record(run_dir: Path, device: torch.device) -> None:
    """Add this process's command to those of the run, with the machine that it runs on."""
    known = read(run_dir).get("commands")
    commands = [*(known if isinstance(known, list) else []), command()]
    kept = commands if len(commands) <= _COMMANDS else [commands[0], *commands[1 - _COMMANDS :]]
    content: dict[str, JSON] = {"commands": list(kept), "machine": machine(device)}
    files.write_text(run_dir / PROVENANCE_FILE, json.dumps(content, indent=2) + "\n")


def read(run_dir: Path) -> dict[str, JSON]:
    """Read the record of a run; empty when there is none or it is damaged."""
    try:
        content = json.loads((run_dir / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def command() -> str:
    """Return the command line of this process as it would be typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def machine(device: torch.device) -> dict[str, JSON]:
    """Return the hardware and the versions that a figure depends on."""
    accelerator = {"accelerator": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "processor": _processor(),
        "cores": cores(),
        **accelerator,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "imagekin": VERSION,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
