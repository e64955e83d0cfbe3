"""Memory that tensors leave stays in the process while it trains."""

import platform
import resource
from pathlib import Path

import pytest
import torch

from imagekin.training.loop.malloc import freed_memory_kept

BYTES = 48 * 2**20
PAGE = resource.getpagesize()

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep freed memory")


def faults_of_a_large_tensor() -> int:
    """Fill a tensor and leave it; return the pages that the system had to give."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(BYTES, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    """Return the memory that the process holds."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def test_freed_memory_is_taken_again_and_in_the_end_given_back() -> None:
    pages = BYTES // PAGE
    before = [faults_of_a_large_tensor() for _ in range(2)]
    with freed_memory_kept():
        for _ in range(20):  # glibc takes a while to have blocks that fit
            faults_of_a_large_tensor()
        inside = sum(faults_of_a_large_tensor() for _ in range(5))
        kept = resident_bytes()
    assert inside < pages / 20
    if min(before) < pages / 2:
        pytest.skip("this system hands out huge pages unasked, so that there is nothing to save")
    assert resident_bytes() < kept - BYTES / 2
    assert faults_of_a_large_tensor() > pages / 2
