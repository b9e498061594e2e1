"""Files that appear whole or not at all, and are on the disk when they appear."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path
from types import TracebackType
from typing import final

_TEMPORARY = re.compile(r"\..+-[0-9a-f]{16}\.tmp", re.ASCII)


@final
class WholeFile:
    """A file that grows under a temporary name beside its own, and takes that in the place of an old one by `commit`.

    Local. A kill at any instant leaves the old file or the new one. Use it as a context manager, which removes what was not
    committed.

    Args:
        path: the file to appear; its folder must be there.

    Attributes:
        path: the file to appear.
        file: where its content goes, open for bytes.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}.tmp")
        self.file = self._temporary.open("xb")

    def commit(self) -> None:
        """Let the file appear, content and name on the disk.

        Raises:
            OSError: the file system refused.
        """
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._temporary.replace(self.path)
        sync(self.path.parent)

    def close(self) -> None:
        """Close the file, and remove one that did not appear. May be called twice.

        Raises:
            OSError: what was still buffered cannot be written, as on a full disk.
        """
        try:
            self.file.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> WholeFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete the temporary files that killed jobs left in a folder, and return them.

    Local. Only for the one rank of the one job that owns the folder, which need not be there.
    """
    leftovers = [path for path in folder.glob(".*.tmp") if _TEMPORARY.fullmatch(path.name) and path.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return leftovers


def make_folder(path: Path) -> None:
    """Make a folder where it is missing, those above it too, and force their names to the disk.

    Local. What is forced to the disk below a folder is lost all the same where the folder's own name is not on it. That of an
    old folder is forced too: a job that was killed may have made it just before. Where the folder above may not be read, it
    cannot be.

    Raises:
        OSError: the folder cannot be made.
    """
    path = path.absolute()
    made = [folder for folder in path.parents if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in (path, *made):
        with contextlib.suppress(PermissionError):
            sync(folder.parent)


def sync(path: Path) -> None:
    """Force a file or folder, as this process sees it, to the disk. Local."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
