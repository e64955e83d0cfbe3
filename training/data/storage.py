"""Choose where decoded images are kept: in memory while they fit, else in a memory-mapped cache."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DataOn = Literal["auto", "device", "cache"]

_MEMORY_SHARE = 3
"""A set in memory is there up to three times while it is made ready."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Place where a set's pixels are kept.

    Attributes:
        on: `device` (in memory), `cache` (a memory-mapped file), or `auto`: the cache for sets that are already in it
            or need more than `budget`.
        cache_dir: the cache's folder; None is `default_cache`.
        budget: bytes of pixels allowed in memory; 0 is a third of the memory that is free now.
    """

    on: DataOn = "device"
    cache_dir: Path | None = None
    budget: int = 0

    @property
    def folder(self) -> Path:
        """The cache's folder."""
        return self.cache_dir or default_cache()

    @property
    def limit(self) -> int:
        """Bytes of pixels allowed in memory."""
        return self.budget or _free_memory() // _MEMORY_SHARE


IN_MEMORY = Storage()


def cache_root() -> Path:
    """Return the folder of all caches: `imagekin` in XDG_CACHE_HOME, which is ~/.cache by default."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "imagekin"


def default_cache() -> Path:
    """Return the folder of decoded images."""
    return cache_root() / "pixels"


def _free_memory() -> int:
    """Return the free memory in bytes, the lesser of the system's and the control group's."""
    try:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        free = 4 * 2**30
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    most, used = _text("/sys/fs/cgroup/memory.max").strip(), _text("/sys/fs/cgroup/memory.current").strip()
    if most.isdigit() and used.isdigit():
        free = min(free, max(0, int(most) - int(used)))
    return free


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
