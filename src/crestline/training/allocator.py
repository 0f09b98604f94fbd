"""Memory that the process frees: kept while something trains, given back to the system after.

Training frees and takes hundreds of megabytes in every update. By default glibc hands large pieces back each time, and
the system clears tens of thousands of pages anew. Elsewhere than with glibc nothing is done. Owns the calls alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of glibc's mallopt."""
KEPT, USUAL = (1 << 30, 1 << 30), (64 << 20, 32 << 20)
"""Bytes: free memory at the end of the heap that is kept, and pieces that come from the system directly. Usual is what
glibc's own moving thresholds come to in a process that handles large pieces."""


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Meanwhile, what is freed stays with the process."""
    _set(*KEPT)
    try:
        yield
    finally:
        _set(*USUAL)
        release_memory()


def release_memory() -> None:
    """Give what is free back to the system, so that the peak is that of one stage and not of their sum."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set(trim: int, mmap: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        if not library.mallopt(MMAP_THRESHOLD, mmap):  # older versions allow no more than this
            library.mallopt(MMAP_THRESHOLD, USUAL[1])
        library.mallopt(TRIM_THRESHOLD, trim)
