"""Map a file as the first rows of an array that continues in memory.

Both parts are in one range of addresses, so that a search scans the rows of the file and those written since in one
pass. The file is mapped privately: writes to the array do not change it.
"""

import ctypes
import mmap
import os
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)

_FAILED = ctypes.c_void_p(-1).value
_MAP_FIXED = 0x10


def map_rows(path: Path, dtype: type[Scalar], rows: int, capacity: int, width: tuple[int, ...] = ()) -> NDArray[Scalar]:
    """Map a file as the first rows of an array.

    Args:
        path: the file; it contains at least these rows, contiguously. It may later be removed or grow, but not shrink.
        dtype: type of a component.
        rows: number of rows in the file.
        capacity: number of rows of the array; those after the file's are zero, and take no memory until written.
        width: shape of a row.

    Returns:
        dtype [capacity, *width], writable.

    Raises:
        OSError: the file cannot be opened or mapped.
        ValueError: the file is too short.
    """
    row_bytes = np.dtype(dtype).itemsize * int(np.prod(width, dtype=np.int64))
    region = mmap.mmap(-1, max(1, capacity * row_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if rows:
        _lay_over(region, path, rows * row_bytes)
    array: NDArray[Scalar] = np.frombuffer(region, dtype, count=capacity * row_bytes // np.dtype(dtype).itemsize)
    return array.reshape(capacity, *width)


def _lay_over(region: mmap.mmap, path: Path, size: int) -> None:
    """Map the first `size` bytes of a file over the beginning of a memory region."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size < size:
            raise ValueError(f"{path.name} is too short")
        start = ctypes.addressof(ctypes.c_char.from_buffer(region))
        call = ctypes.CDLL(None, use_errno=True).mmap
        call.restype = ctypes.c_void_p
        call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        flags = mmap.MAP_PRIVATE | _MAP_FIXED
        if call(start, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0) == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(descriptor)
