"""Which checkpoints stay, and how the others go."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lepton_mpi.checkpoint.commit import list_checkpoints, temporary_name
from lepton_mpi.checkpoint.layout import STEP_FOLDER
from lepton_mpi.runtime.whole_file import sync


@dataclass(frozen=True)
class Retention:
    """The rule by which checkpoints stay.

    Attributes:
        keep_last: so many of the newest; 0: all.
        keep_every: besides, those whose step is a multiple of this; 0: none.
    """

    keep_last: int = 0
    keep_every: int = 0

    def surplus(self, root: Path, newest: Path, distrusted: Collection[str] = ()) -> list[Path]:
        """Return the checkpoints that may go. Local.

        Args:
            root: directory of the run's checkpoints.
            newest: one just committed. What claims a later step, as a damaged one that was passed over does, is neither
                counted nor named: it stays until the run gets there.
            distrusted: names of checkpoints that do not count among the last, since they were found damaged.
        """
        if not self.keep_last:
            return []
        last_step, surplus, kept = step_of(newest), [], 0
        for path in list_checkpoints(root):
            step = step_of(path)
            if step > last_step:
                continue
            counts = path.name not in distrusted
            kept += counts
            if (counts and kept <= self.keep_last) or (self.keep_every and step % self.keep_every == 0):
                continue
            if kept:  # never before a newer one that is whole
                surplus.append(path)
        return surplus


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's directory. Local."""
    match = STEP_FOLDER.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is no directory of a checkpoint")
    return int(match[1])


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint, first by taking its name away, so that nobody ever takes a part of it for the whole.

    Local. Interrupted, it leaves a temporary directory that `remove_unfinished` knows. One that is gone already is well.

    Raises:
        OSError: the file system refused.
    """
    doomed = temporary_name(path.parent, step_of(path))
    with contextlib.suppress(FileNotFoundError):
        path.rename(doomed)
        sync(path.parent)
        shutil.rmtree(doomed)
