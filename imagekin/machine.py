"""Describe the machine that this process runs on."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

Device: TypeAlias = Literal["auto", "cpu", "cuda"]
"""The device that a model runs on; `auto` is a GPU if one can be used, else the CPU."""

# Parameters of glibc's mallopt, see `man mallopt`.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


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


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory for what is allocated next, where the C library is glibc; return it to the system at the end.

    Large blocks otherwise go back to the system when they are freed. Work that allocates the same ones over and over,
    as each step of a training on a CPU does, then spends up to two fifths of its time on page faults.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        # The numbers before cannot be read. These are where glibc's own adjustment ends.
        library.mallopt(_M_MMAP_MAX, 65_536)
        library.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        library.mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)
        library.malloc_trim(0)


def is_first() -> bool:
    """Return True in the process of rank 0, by torchrun's environment; without torchrun, always."""
    return os.environ.get("RANK", "0") in ("", "0")
