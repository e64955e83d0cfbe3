"""Scan codes for one query with FAISS: the largest products and their rows, or every row above a threshold."""

import contextlib
import functools
import queue
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from imagekin.index.vectors.brute_force import Products, Rows

_FAISS: Any = faiss


class _Scanner:
    """FAISS's scanner of signed codes, for one thread at a time.

    If the width is a multiple of 16 bytes, FAISS converts the query to integers as well.
    """

    def __init__(self, width: int) -> None:
        self._codec = _FAISS.ScalarQuantizer(width, _FAISS.ScalarQuantizer.QT_8bit_direct_signed)
        self._scanner = self._codec.select_InvertedListScanner(_FAISS.METRIC_INNER_PRODUCT, None, True, None, False)
        self._scanner.set_list(0, 0.0)

    def best(self, query: Products, codes: NDArray[np.uint8], products: Products, rows: Rows) -> None:
        """Store the largest products and their rows, as many as there is room for, in no order."""
        self._scanner.set_query(_FAISS.swig_ptr(query))
        self._scanner.scan_codes(
            len(codes), _FAISS.swig_ptr(codes), None, _FAISS.swig_ptr(products), _FAISS.swig_ptr(rows), len(rows)
        )

    def above(self, query: Products, codes: NDArray[np.uint8], threshold: float) -> Rows:
        """Return the rows whose products are above a threshold, in no order."""
        self._scanner.set_query(_FAISS.swig_ptr(query))
        result = _FAISS.RangeSearchResult(1)
        partial = _FAISS.RangeSearchPartialResult(result)
        self._scanner.scan_codes_range(len(codes), _FAISS.swig_ptr(codes), None, threshold, partial.new_result(0))
        partial.finalize()
        count = int(_FAISS.rev_swig_ptr(result.lims, 2)[1])
        rows: Rows = _FAISS.rev_swig_ptr(result.labels, count).copy() if count else np.empty(0, np.int64)
        return rows


@contextlib.contextmanager
def borrow_scanner(width: int) -> Iterator[_Scanner]:
    """Borrow a scanner of codes of so many bytes for the block.

    Scanners are reused because each call to FAISS that makes one releases the interpreter's lock.
    """
    idle = _idle(width)
    try:
        scanner = idle.get_nowait()
    except queue.Empty:
        scanner = _Scanner(width)
    try:
        yield scanner
    finally:
        idle.put(scanner)


@functools.cache
def _idle(width: int) -> "queue.SimpleQueue[_Scanner]":
    return queue.SimpleQueue()
