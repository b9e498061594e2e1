"""What a checkpoint asks of the file system: all its space before any rank writes, and an early start of the way to the disk."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

_SYNC_FILE_RANGE_WRITE = 2  # of sync_file_range(2): begin, and do not wait
# What fallocate(2) answers where the file system cannot reserve space.
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def reserve_space(file: Path) -> None:
    """Have the file system allocate every byte of a file that so far only has its size.

    Local. A full disk or quota is then one clear error on one rank. Found in the middle of a collective
    write instead, it makes ranks hang or lose data silently (seen with Open MPI 5.0.11 and HDF5 1.10.8).
    Where space cannot be reserved, the free space is compared with the need, which misses quotas.

    Args:
        file: a file at its final size.

    Raises:
        OSError: there is not enough space.
    """
    nbytes = file.stat().st_size
    if not _fallocate(file, nbytes):
        status = os.statvfs(file)
        free_nbytes = status.f_bavail * status.f_frsize
        if free_nbytes < nbytes:
            raise OSError(errno.ENOSPC, f"the checkpoint needs {nbytes} bytes, the file system has {free_nbytes} left", str(file))


def start_sync(descriptor: int) -> None:
    """Have the kernel begin to write a file to the disk, so that there is less left for an fsync(2) to wait for.

    Local. It promises nothing and waits for nothing; errors are that fsync's. Linux only, nothing is done elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return
    sync_file_range = ctypes.CDLL(None).sync_file_range
    sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)


def _fallocate(file: Path, nbytes: int) -> bool:
    """Reserve space with Linux's fallocate(2) and say whether the file system could.

    Not `os.posix_fallocate`: where the file system cannot, the C library writes into every block instead.
    """
    if not sys.platform.startswith("linux") or nbytes == 0:
        return False
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    descriptor = os.open(file, os.O_WRONLY)
    try:
        while fallocate(descriptor, 0, 0, nbytes):
            code = ctypes.get_errno()
            if code in _UNSUPPORTED:
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code), str(file))
    finally:
        os.close(descriptor)
    return True
