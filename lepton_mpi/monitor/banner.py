"""The few lines that say at the start what a run is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lepton_mpi.monitor.summary import GridSizes


@final
@dataclass(frozen=True)
class BannerFacts:
    """What the banner tells."""

    version: str
    grid: GridSizes
    num_ranks: int
    num_hosts: int
    device: str
    mpi: str
    num_threads: int  # threads a rank
    model: str
    num_parameters: int
    data: str
    checkpoint_driver: str
    run_folder: str


def format_banner(facts: BannerFacts) -> str:
    """Return the banner: seven aligned lines, each with its newline. Local."""
    grid = facts.grid
    rows = (
        ("lepton_mpi", facts.version),
        (
            "grid",
            f"data {grid.data} x stages {grid.stages} x shards {grid.shards} = "
            f"{_count(facts.num_ranks, 'rank')} on {_count(facts.num_hosts, 'host')}",
        ),
        ("machine", f"{facts.device}, {_count(facts.num_threads, 'thread')} a rank, {facts.mpi}"),
        ("model", f"{facts.model}, {_count(facts.num_parameters, 'parameter')}"),
        ("data", facts.data),
        ("checkpoint", facts.checkpoint_driver),
        ("run", facts.run_folder),
    )
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:<{width}}  {text}\n" for name, text in rows)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
