"""What is asked of the machine beneath the process."""

import platform
import resource
import subprocess
import sys
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


FAULTS = """
import ctypes, resource
from imagekin.machine import freed_memory_kept
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def use(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        block = library.malloc(BYTES)
        ctypes.memset(block, 1, BYTES)
        library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
BYTES = 64 * 2**20
with freed_memory_kept():
    use(1)
    kept = use(8)
print(kept, int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_kept_memory_is_used_again_without_page_faults_and_returned_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    faults, resident = map(int, done.stdout.split())
    block = 64 * 2**20
    assert faults < block // resource.getpagesize() // 4
    assert resident < 48 * 2**20 + block // 4
