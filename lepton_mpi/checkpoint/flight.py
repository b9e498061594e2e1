"""A save in flight, as far as all ranks agree about it, and a rank's own part in it."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.layout import DATA_FILE
from lepton_mpi.runtime.mpi import MPI

Stage = Literal["copy", "write", "check", "commit"]
NEXT: dict[Stage, Stage] = {"copy": "write", "write": "check", "check": "commit"}
# How far a rank is in the present stage. The least of all ranks' is how far the save is.
FAILED, BUSY, DONE = -1, 0, 1


@dataclass
class Flight:
    """The save in flight.

    Attributes:
        step: global step.
        root: directory of the run's checkpoints.
        temporary: where this one grows; on rank 0 as soon as it is made, on the others from the stage "write" on.
        offsets: where tensors and table lie in the file; on rank 0.
        stage: the same on all ranks.
        mine: how far this rank is in it.
        error: what went wrong here.
        digests: of what this rank wrote.
        said, agreed: buffers of the message in which ranks say how far they are.
        vote: that message, while it is on its way.
        copied: set once the arrays of this rank may change.
        dropped: set once nobody wants the save any more.
    """

    step: int
    root: Path
    temporary: Path | None = None
    offsets: dict[str, int] = field(default_factory=dict)
    stage: Stage = "copy"
    mine: int = BUSY
    error: str = ""
    digests: list[int] = field(default_factory=list)
    said: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    agreed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    vote: MPI.Request | None = None
    copied: threading.Event = field(default_factory=threading.Event)
    dropped: threading.Event = field(default_factory=threading.Event)

    @property
    def file(self) -> Path:
        """The data file, once there is one."""
        assert self.temporary is not None
        return self.temporary / DATA_FILE

    def fail(self, error: Exception) -> None:
        """Note what went wrong with this rank's part. Local."""
        self.mine = FAILED
        self.error = str(error) if self.stage == "copy" else f"cannot {self.stage} {self.file}: {error}"

    def discard(self) -> None:
        """Remove what there is of it. Local, on rank 0, once nobody works on it."""
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)
