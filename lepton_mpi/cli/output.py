"""Where a command writes its result: standard output, or a file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TextIO, final

from lepton_mpi.errors import ConfigError, LeptonError


@final
class Output:
    """Text on its way to standard output or a file.

    Local. A regular file is written under another name and moved to its place by `commit`; devices
    and pipes are written directly.

    Args:
        path: the file; None: standard output.

    Raises:
        ConfigError: the file cannot be made.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path if path is None else path.resolve()  # what a link leads to, rather than the link
        self._draft: Path | None = None
        self._stream: TextIO = sys.stdout
        if self._path is None:
            return
        if not self._path.exists() or self._path.is_file():
            self._draft = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            self._stream = open(self._draft or self._path, "w", encoding="utf-8")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise ConfigError(
                f"--output: cannot write {path}: {error.strerror}; give a file in a folder that exists and can be written"
            ) from error

    def write(self, text: str) -> None:
        """Write text.

        Raises:
            LeptonError: the file cannot be written.
            BrokenPipeError: nobody reads standard output any more.
        """
        try:
            self._stream.write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._failure(error) from error

    def commit(self) -> None:
        """Say that all is written: the file appears, on the disk.

        Raises:
            LeptonError: the file cannot be written.
            BrokenPipeError: nobody reads standard output any more.
        """
        try:
            self._stream.flush()
            if self._draft is not None:
                assert self._path is not None
                os.fsync(self._stream.fileno())
                self._draft.replace(self._path)
                self._draft = None
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the file; one that was not committed is removed. Never raises: what matters was said before."""
        with contextlib.suppress(OSError):
            if self._stream is not sys.stdout:
                self._stream.close()
        with contextlib.suppress(OSError):
            if self._draft is not None:
                self._draft.unlink()

    def _failure(self, error: OSError) -> LeptonError:
        target = "standard output" if self._path is None else str(self._path)
        return LeptonError(f"cannot write {target}: {error.strerror}; see whether its disk is full, over quota or read-only")
