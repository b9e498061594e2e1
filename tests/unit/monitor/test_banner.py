"""The banner."""

from __future__ import annotations

from dataclasses import replace

from lepton_mpi.monitor.banner import BannerFacts, format_banner
from lepton_mpi.monitor.summary import GridSizes

FACTS = BannerFacts(
    version="0.1.0",
    grid=GridSizes(data=2, stages=2, shards=1),
    num_ranks=4,
    num_hosts=1,
    device="cpu",
    mpi="Open MPI v5.0.11",
    num_threads=1,
    model="mlp 64-1000-512-256-128-10",
    num_parameters=743_242,
    data="digits: 1,437 training and 360 test samples, 10 classes",
    checkpoint_driver="mpio",
    run_folder="runs/mlp-digits-20261121-015555",
)


def test_the_banner_is_short_aligned_and_complete() -> None:
    assert format_banner(FACTS).splitlines() == [
        "lepton_mpi  0.1.0",
        "grid        data 2 x stages 2 x shards 1 = 4 ranks on 1 host",
        "machine     cpu, 1 thread a rank, Open MPI v5.0.11",
        "model       mlp 64-1000-512-256-128-10, 743,242 parameters",
        "data        digits: 1,437 training and 360 test samples, 10 classes",
        "checkpoint  mpio",
        "run         runs/mlp-digits-20261121-015555",
    ]
    assert format_banner(FACTS).endswith("\n")


def test_numbers_have_their_plural() -> None:
    text = format_banner(replace(FACTS, num_ranks=1, num_hosts=2, num_threads=8))
    assert "= 1 rank on 2 hosts" in text and "8 threads a rank" in text
