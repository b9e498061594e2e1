"""Hints for parallel file systems, and where datasets begin."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from lepton_mpi.checkpoint.hdf5 import create_data_file
from lepton_mpi.checkpoint.integrity import verify_checkpoint
from lepton_mpi.checkpoint.layout import DATA_FILE, TensorInfo, TensorSlice
from lepton_mpi.checkpoint.plan import table_dtype
from lepton_mpi.checkpoint.storage import Storage, parse_hints
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.errors import CheckpointError

HINTED = Storage(("striping_factor=4", "cb_nodes = 2"), 2**16)


@pytest.mark.parametrize("hint", ["name", "=3", "name=", "", "x" * 300 + "=1"])
def test_malformed_hints(hint):
    with pytest.raises(CheckpointError, match=r"checkpoint\.hints: expected \"name=value\""):
        parse_hints([hint])


def test_hints_reach_mpi(comm):
    info = HINTED.make_info()
    assert {name: info.Get(name) for name in ("striping_factor", "cb_nodes")} == {"striping_factor": "4", "cb_nodes": "2"}
    info.Free()


def test_large_tensors_begin_at_the_alignment(comm, tmp_path):
    slices = [TensorSlice(f"/param/{name}", (2**17,), (0,), np.full(2**17, 3.0)) for name in "ab"]
    path = write_checkpoint(comm, tmp_path, 1, slices, {}, "direct", HINTED)
    verify_checkpoint(comm, path)
    with h5py.File(path / DATA_FILE) as data:
        assert [data["param"][name].id.get_offset() % 2**16 for name in "ab"] == [0, 0]


def test_a_file_that_is_there_is_not_overwritten(comm, tmp_path):
    file = tmp_path / "data.h5"
    file.write_text("mine")
    tensors = {"/w": TensorInfo((3,), np.dtype(np.float32))}
    with pytest.raises(OSError, match="MPI-IO cannot make"):
        create_data_file(file, tensors, {}, np.zeros(0, table_dtype(tensors)), HINTED)
    with pytest.raises(OSError, match="exists"):
        create_data_file(file, tensors, {}, np.zeros(0, table_dtype(tensors)))
    assert file.read_text() == "mine"
