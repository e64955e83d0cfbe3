"""What is asked of the machine beneath the process."""

import platform
import resource
from pathlib import Path

import pytest

from imagekin.machine import return_freed_memory

COUNT, BYTES = 1000, 64 * 1024


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to give memory back")
def test_what_was_freed_between_blocks_goes_back_to_the_system() -> None:
    blocks = [bytearray(b"x" * BYTES) for _ in range(COUNT)]
    del blocks[::2]
    before = resident_bytes()
    return_freed_memory()
    assert before - resident_bytes() > COUNT // 2 * BYTES * 0.8
    assert all(block == b"x" * BYTES for block in blocks)
