"""The result of a run, as `summary.json` holds it."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, final

import lepton_mpi
from lepton_mpi.monitor.json_text import format_json
from lepton_mpi.monitor.metrics import Evaluation

Status = Literal["running", "finished", "interrupted", "failed"]


@final
@dataclass(frozen=True)
class GridSizes:
    """Sizes of the process grid; their product is the number of ranks."""

    data: int
    stages: int
    shards: int


@final
@dataclass(frozen=True)
class Versions:
    """The software that produced the result."""

    lepton_mpi: str
    python: str
    numpy: str
    mpi4py: str
    mpi: str
    h5py: str


@final
@dataclass(frozen=True)
class Summary:
    """What a run achieved, with what, and how fast."""

    status: Status
    step: int
    epoch: float
    train_loss: float
    eval: Evaluation | None  # None: not evaluated yet
    stopped_early: bool  # since evaluations were no longer better
    best: float  # best value of the metric that is watched; nan before the first evaluation
    weights_sha256: str
    grid: GridSizes
    samples_per_second: float
    data_wait_share: float  # share of the time of the steps in which training waited for batches
    wall_seconds: float
    versions: Versions

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as nested dicts, lists and numbers. Local."""
        return asdict(self) | {"eval": self.eval.to_dict() if self.eval else None}

    def to_json(self) -> str:
        """Return the summary as indented JSON with a final newline; NaN and infinity become null. Local."""
        return format_json(self.to_dict(), indent=2) + "\n"


def collect_versions(mpi: str) -> Versions:
    """Return the versions of the installed software.

    Local.

    Args:
        mpi: name and version of the MPI library, from `runtime.mpi.mpi_library`.
    """
    return Versions(
        lepton_mpi=lepton_mpi.__version__,
        python=platform.python_version(),
        numpy=_installed_version("numpy"),
        mpi4py=_installed_version("mpi4py"),
        mpi=mpi,
        h5py=_installed_version("h5py"),
    )


def _installed_version(package: str) -> str:
    """Ask the package's metadata: importing h5py for its version could load MPI."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
