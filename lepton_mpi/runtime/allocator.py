"""How the C library treats memory that is given back."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3), from glibc's malloc.h, and what they are set to.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER_TRIM = 2**31 - 1
_LARGEST_FROM_HEAP = 1 << 30


def keep_freed_memory() -> None:
    """Let freed memory stay with the process, for the next arrays of the same size. Local.

    A training step makes and drops the same large arrays again and again. glibc gives such memory back to the kernel,
    which must then clear every page anew: a quarter of the time of an attention layer. The peak stays the same.
    Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_FROM_HEAP)
        library.mallopt(_TRIM_THRESHOLD, _NEVER_TRIM)
