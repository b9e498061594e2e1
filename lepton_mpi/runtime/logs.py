"""Log files: one a rank, all lines with time, level, rank and host."""

from __future__ import annotations

import contextlib
import logging
import platform
import sys
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Final, final

from lepton_mpi.errors import ConfigError

_LOGGER: Final = "lepton_mpi"
_MIN_RANK_DIGITS: Final = 4


@final
class Logs:
    """The handler that `start_logging` installed; closing it takes the handler away again."""

    def __init__(self, handler: logging.Handler, level: int) -> None:
        self._logger = logging.getLogger(_LOGGER)
        self._handler = handler
        self._earlier_level = self._logger.level
        self._logger.addHandler(handler)
        self._logger.setLevel(level)

    def close(self) -> None:
        """Flush and close the file, and restore the logger as it was. Local; may be called twice."""
        if self._handler in self._logger.handlers:
            self._logger.removeHandler(self._handler)
            self._logger.setLevel(self._earlier_level)
            with contextlib.suppress(OSError):  # lines that a full disk did not take were reported when they came
                self._handler.close()

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


def log_path(folder: Path, rank: int, size: int) -> Path:
    """Return the log file of a rank, `<folder>/logs/rank-0000.log`: enough digits to sort by name. Local."""
    digits = max(_MIN_RANK_DIGITS, len(str(size - 1)))
    return folder / "logs" / f"rank-{rank:0{digits}}.log"


def start_logging(rank: int, size: int, folder: Path | None, level: str = "INFO") -> Logs:
    """Send the records of all lepton_mpi loggers to this rank's log file.

    Local. Rank 0 logs at `level`; the others at WARNING (or above, where `level` is above), and
    their files appear with their first record, so that a large job does not begin by
    creating thousands of empty files.

    Args:
        rank, size: this rank and the number of ranks in the world.
        folder: the run folder; None logs to standard error.
        level: DEBUG, INFO, WARNING or ERROR.

    Returns:
        A handle to close at the end; also a context manager.

    Raises:
        ConfigError: the log file cannot be made; may happen on one rank alone.
    """
    number = logging.getLevelNamesMapping()[level]
    if rank != 0:
        number = max(number, logging.WARNING)
    handler: logging.Handler = logging.StreamHandler()
    if folder is not None:
        handler = _open_file(log_path(folder, rank, size), delay=rank != 0)
    handler.setFormatter(_utc_formatter(rank, size))
    return Logs(handler, number)


@final
class _RankFile(WatchedFileHandler):
    """A log file that is made anew when it was deleted, and never stops the caller: a full disk costs lines, no run."""

    _has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            sys.stderr.write(f"lepton_mpi: the log {self.baseFilename} cannot be written: {error.strerror}\n")


def _open_file(path: Path, delay: bool) -> logging.FileHandler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _RankFile(path, encoding="utf-8", delay=delay)
    except OSError as error:
        raise ConfigError(f"run.dir: cannot write the log file {path}: {error.strerror}; choose another run folder") from error


def _utc_formatter(rank: int, size: int) -> logging.Formatter:
    host = platform.node().replace("%", "%%")
    formatter = logging.Formatter(
        f"%(asctime)s.%(msecs)03dZ %(levelname)s rank {rank}/{size} {host} %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    return formatter
