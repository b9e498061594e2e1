"""Ranks: the process grid, exact collectives, point-to-point, memory shared inside a node, the compressed all-reduce."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lepton_mpi.comm.compressed_allreduce import CompressedAllreduce as CompressedAllreduce

__all__ = ["CompressedAllreduce"]


def __getattr__(name: str) -> Any:
    # Late, since commands import parts of this package before NumPy may be loaded.
    if name == "CompressedAllreduce":
        from lepton_mpi.comm.compressed_allreduce import CompressedAllreduce

        return CompressedAllreduce
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
