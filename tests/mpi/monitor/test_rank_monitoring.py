"""What several ranks write and count together."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from lepton_mpi.monitor.classification import classification_metrics, confusion_matrix
from lepton_mpi.runtime.logs import log_path, start_logging
from lepton_mpi.runtime.mpi import MPI, start_mpi


@pytest.mark.mpi
def test_every_rank_has_a_log_file_of_its_own(tmp_path: Path) -> None:
    comm = start_mpi().Dup()
    folder = comm.bcast(tmp_path, root=0)
    rank, size = comm.Get_rank(), comm.Get_size()
    with start_logging(rank, size, folder, "INFO"):
        logging.getLogger("lepton_mpi.test").info("info of %d", rank)
        logging.getLogger("lepton_mpi.test").warning("warning of %d", rank)
    comm.Barrier()
    messages = [
        [line.rpartition("test: ")[2] for line in log_path(folder, other, size).read_text().splitlines()] for other in range(size)
    ]
    comm.Barrier()
    comm.Free()
    assert messages == [["info of 0", "warning of 0"], *([f"warning of {other}"] for other in range(1, size))]


@pytest.mark.mpi
def test_matrices_summed_over_ranks_give_the_metrics_of_one_process() -> None:
    comm = start_mpi().Dup()
    generator = np.random.default_rng(3)
    labels, predictions = generator.integers(0, 7, 101), generator.integers(0, 7, 101)
    part = slice(comm.Get_rank(), None, comm.Get_size())
    matrix = confusion_matrix(labels[part], predictions[part], 7)
    comm.Allreduce(MPI.IN_PLACE, matrix, op=MPI.SUM)
    comm.Free()
    assert classification_metrics(matrix) == classification_metrics(confusion_matrix(labels, predictions, 7))
