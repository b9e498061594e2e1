"""The folder of a run: its configuration, metrics, summary, logs and checkpoints.

Only rank 0 uses it; all functions are local.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from datetime import datetime
from io import SEEK_END, FileIO
from pathlib import Path
from types import TracebackType
from typing import Final, final

from lepton_mpi.errors import ConfigError, LeptonError
from lepton_mpi.monitor.json_text import format_json
from lepton_mpi.monitor.summary import Summary
from lepton_mpi.runtime.whole_file import WholeFile, make_folder

_CONFIG: Final = "config.toml"
_METRICS: Final = "metrics.jsonl"
_SUMMARY: Final = "summary.json"


def default_run_name(family: str, data_format: str, now: datetime) -> str:
    """Return a name such as `mlp-digits-20261121-015555`. Local."""
    return f"{family}-{data_format}-{now:%Y%m%d-%H%M%S}"


def claim_folder(parent: Path, name: str) -> Path:
    """Create and return `parent/name`, or `parent/name-2`, `-3`, ... where another run was faster.

    Local. Two jobs that start in the same second never share a folder, since making one is atomic.

    Raises:
        ConfigError: the folder cannot be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(parent, error) from error
    number, path = 1, parent / name
    while not _make_folder(path):
        number += 1
        path = parent / f"{name}-{number}"
    return path


def is_run_folder(path: Path) -> bool:
    """Tell whether a folder is that of a training run. Local."""
    return (path / _METRICS).is_file()


@final
class RunFolder:
    """A run's folder, made with its `logs/` and `checkpoints/` where they are missing.

    Local. The metrics file stays open until `close`; the class is also a context manager.

    Args:
        path: the folder, e.g. `runs/<name>`; parents are made.

    Raises:
        ConfigError: the folder or the metrics file in it cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.checkpoints = path / "checkpoints"
        self._make()

    def _make(self) -> None:
        try:
            make_folder(self.path)
            self.logs.mkdir(exist_ok=True)
            make_folder(self.checkpoints)
            self._metrics = _open_metrics(self.metrics_path)
        except OSError as error:
            raise _unusable(self.path, error) from error

    def restore(self) -> bool:
        """Make anew what was deleted of folder and metrics file, and return whether anything was.

        Local. Lines of metrics that were in it are lost.

        Raises:
            ConfigError: it cannot be made.
        """
        if self.metrics_path.is_file() and self.logs.is_dir() and self.checkpoints.is_dir():
            return False
        self._metrics.close()
        self._make()
        return True

    @property
    def metrics_path(self) -> Path:
        """The file with one JSON object a line."""
        return self.path / _METRICS

    @property
    def config_path(self) -> Path:
        """The file with the resolved configuration."""
        return self.path / _CONFIG

    @property
    def summary_path(self) -> Path:
        """The file with the result of the run."""
        return self.path / _SUMMARY

    def write_config(self, toml: str) -> None:
        """Write the resolved configuration, whole or not at all. Local. Raises LeptonError if the disk refuses."""
        _write_atomically(self.config_path, toml)

    def write_summary(self, summary: Summary) -> None:
        """Write the summary, whole or not at all. Local. Raises LeptonError if the disk refuses."""
        _write_atomically(self.summary_path, summary.to_json())

    def is_finished(self, step: int) -> bool:
        """Tell whether the summary says that the run finished at this step. Local; one that cannot be read says nothing."""
        try:
            summary = json.loads(self.summary_path.read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(summary, dict) and summary.get("status") == "finished" and summary.get("step") == step

    def append_metrics(self, record: Mapping[str, object]) -> None:
        """Append one line to the metrics file and hand it to the system.

        Local. NaN and infinity are written as null.

        Args:
            record: numbers, strings, and lists or mappings of them; `step` names the step.

        Raises:
            LeptonError: the line cannot be written.
        """
        line = format_json(record).encode() + b"\n"
        begin = self._metrics.seek(0, SEEK_END)
        try:
            while line:
                line = line[self._metrics.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._metrics.truncate(begin)  # half a line would swallow the next one
            raise _failed_write(self.metrics_path, error) from error

    def truncate_metrics(self, after_step: int) -> int:
        """Drop what an earlier process wrote past the step from which the run resumes.

        Local. Lines that are no JSON object are dropped too: a killed process may leave half a line.
        Lines without a step stay.

        Args:
            after_step: the last step whose lines stay.

        Returns:
            Number of lines dropped.

        Raises:
            LeptonError: the file cannot be rewritten.
        """
        try:
            self._metrics.close()
            lines = self.metrics_path.read_bytes().splitlines()
            kept = [line for line in lines if _is_within(line, after_step)]
            if len(kept) < len(lines):
                _replace(self.metrics_path, b"".join(line + b"\n" for line in kept))
            self._metrics = _open_metrics(self.metrics_path)
        except OSError as error:
            raise _failed_write(self.metrics_path, error) from error
        return len(lines) - len(kept)

    def close(self) -> None:
        """Close the metrics file. Local; may be called twice."""
        self._metrics.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _make_folder(path: Path) -> bool:
    """Make a folder; return False where the name is taken."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    except OSError as error:
        raise _unusable(path, error) from error
    return True


def _open_metrics(path: Path) -> FileIO:
    """Open for appending, past the last whole line: a torn one must not swallow the next record."""
    file = FileIO(path, "a+")  # unbuffered: a line is with the system once written, and close has nothing left to fail on
    file.seek(0)
    content = file.readall()
    if not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)
    return file


def _is_within(line: bytes, after_step: int) -> bool:
    try:
        record = json.loads(line)
    except ValueError:  # covers JSONDecodeError and UnicodeDecodeError
        return False
    if not isinstance(record, dict):
        return False
    step = record.get("step")
    return not isinstance(step, int | float) or step <= after_step


def _write_atomically(path: Path, text: str) -> None:
    try:
        _replace(path, text.encode())
    except OSError as error:
        raise _failed_write(path, error) from error


def _replace(path: Path, content: bytes) -> None:
    """Put a file in place so that a kill at any instant leaves the old or the new one, both on disk.

    The name must be as durable as the content, hence the fsync of the folder too.
    """
    with WholeFile(path) as whole:
        whole.file.write(content)
        whole.commit()


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"run.dir: cannot use the run folder {path}: {error.strerror}; choose one that can be made and written")


def _failed_write(path: Path, error: OSError) -> LeptonError:
    return LeptonError(f"cannot write {path}: {error.strerror}; see whether its disk is full, over quota or read-only")
