"""Describe the machine that this process runs on."""

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import Literal, TypeAlias

Device: TypeAlias = Literal["auto", "cpu", "cuda"]
"""The device that a model runs on; `auto` is a GPU if one can be used, else the CPU."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def raise_open_files() -> tuple[int, int] | None:
    """Raise the number of files that this process may open to what the system allows.

    Returns:
        The limits before and after, None when it was as high already.
    """
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft == hard:
        return None
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return None
    return soft, hard


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _glibc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc, else None."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


def return_freed_memory() -> None:
    """Return freed memory between blocks in use to the system, which glibc otherwise keeps."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def is_first() -> bool:
    """Return True in the process of rank 0, by torchrun's environment; without torchrun, always."""
    return os.environ.get("RANK", "0") in ("", "0")
