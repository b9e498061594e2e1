"""Folders that grow under a temporary name, and appear under their own whole or not at all.

A draft is locked by the process that fills it (flock(2)), so that whoever comes later can tell an abandoned one, of a job that was
killed, from one that is still growing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import final

from lepton_mpi.runtime.whole_file import sync

_SUFFIX = ".tmp"


@final
class Draft:
    """A new folder beside the place that it is for, which is made where it is missing; locked until it is closed.

    Local. Others may write into it; only the process that made it commits it.

    Args:
        target: the folder or file to be made; what lies in its parent is not touched.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self.path = target.with_name(f".{target.name}.{secrets.token_hex(8)}{_SUFFIX}")
            self.path.mkdir()
            self._lock = os.open(self.path, os.O_RDONLY)
            if not _lock(self._lock) or self.path.exists():  # else somebody took it for abandoned before it was locked
                return
            os.close(self._lock)

    def commit_folder(self) -> None:
        """Give the folder its own name, with all that is in it, on the disk.

        Raises:
            OSError: the file system refused, or something of that name is there.
        """
        sync(self.path)
        self.path.rename(self.target)
        sync(self.target.parent)

    def commit_file(self, name: str) -> None:
        """Give one file of the draft the name it is for, on the disk; the rest goes away at `close`.

        Raises:
            OSError: the file system refused.
        """
        (self.path / name).rename(self.target)
        sync(self.target.parent)

    def close(self) -> None:
        """Unlock, and remove what was not committed. Never raises: what matters was said before."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock)


@contextlib.contextmanager
def open_draft(target: Path) -> Iterator[Draft]:
    """Give a draft and remove it at the end, unless it was committed. Local.

    Raises:
        OSError: the folder cannot be made.
    """
    draft = Draft(target)
    try:
        yield draft
    finally:
        draft.close()


def remove_abandoned(folder: Path, name: str = "") -> list[Path]:
    """Remove drafts whose process is gone, and return them. Local.

    Where the file system has no locks, none is removed, since one might still be growing.

    Args:
        folder: where to look; it may be missing.
        name: only drafts for this name; empty: all.
    """
    removed = []
    for path in sorted(folder.glob(f".{name or '*'}.*{_SUFFIX}")) if folder.is_dir() else ():
        token = path.name.removesuffix(_SUFFIX).rpartition(".")[2]
        if len(token) != 16 or path.is_symlink() or not path.is_dir():
            continue
        with contextlib.suppress(OSError):  # another process removes it at this moment, or may not be asked
            lock = os.open(path, os.O_RDONLY)
            try:
                if _lock(lock):
                    shutil.rmtree(path)
                    removed.append(path)
            finally:
                os.close(lock)
    return removed


def free_nbytes(folder: Path) -> int:
    """Return how many bytes the file system of a folder has left for this user. Local."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _lock(descriptor: int) -> bool:
    """Lock an open folder and say whether that worked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
