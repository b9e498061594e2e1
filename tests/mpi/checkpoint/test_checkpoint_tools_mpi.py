"""The tools for checkpoints on several ranks: the reading is shared, and all ranks know the same afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lepton_mpi.checkpoint import layout
from lepton_mpi.checkpoint.integrity import find_damage, verify_checkpoint
from lepton_mpi.checkpoint.layout import DATA_FILE, TensorSlice
from lepton_mpi.checkpoint.migration import convert_checkpoint
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.cli.checkpoint_arguments import CheckpointArguments
from lepton_mpi.cli.checkpoint_tools import run_checkpoint_tool
from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.ranges import split_range

pytestmark = pytest.mark.mpi

GOLDEN = Path(__file__).parents[2] / "unit" / "checkpoint" / "golden" / "format-1.0" / "step-000000042"


def save(comm, root, monkeypatch):
    """Write two tensors in extents of 64 bytes, 8 for each rank's share of each at least."""
    monkeypatch.setattr(layout, "EXTENT_NBYTES", 64)
    whole = np.random.default_rng(1).random((comm.size * 8, 16), np.float32)
    start, stop = split_range(len(whole), comm.size, comm.rank)
    slices = [TensorSlice(path, whole.shape, (start, 0), whole[start:stop]) for path in ("/param/a", "/param/b")]
    return write_checkpoint(comm, root, 1, slices, {})


def flip(comm, path, changes):
    """Invert bytes of tensors: pairs of path and position."""
    with CheckpointReader(path) as reader:
        positions = [reader.offset(tensor) + position for tensor, position in changes]
    comm.Barrier()
    if comm.rank == 0:
        data = bytearray((path / DATA_FILE).read_bytes())
        for position in positions:
            data[position] ^= 1
        (path / DATA_FILE).write_bytes(data)
    comm.Barrier()


def test_every_damaged_extent_is_named_on_all_ranks(comm, root, monkeypatch):
    path = save(comm, root, monkeypatch)
    assert find_damage(comm, path) == []
    rows = [0, comm.size * 4, comm.size * 8 - 1]
    flip(comm, path, [("/param/a", row * 64) for row in rows] + [("/param/b", row * 64 + 63) for row in rows])
    found = find_damage(comm, path)
    expected = [f"tensor {tensor}, extent [{row}:{row + 1}, 0:16]" for tensor in ("/param/a", "/param/b") for row in rows]
    assert [text.split(": ")[1] for text in found] == expected
    assert comm.allgather(found) == [found] * comm.size
    with pytest.raises(CheckpointError) as caught:
        verify_checkpoint(comm, path)
    assert str(caught.value) == f"{found[0]}; use an older checkpoint"


def test_verify_command_has_one_exit_code(comm, root, monkeypatch, capsys):
    path = save(comm, root, monkeypatch)
    arguments = CheckpointArguments("verify", (root,))
    assert run_checkpoint_tool(comm, arguments) == 0
    flip(comm, path, [("/param/b", 0)])
    capsys.readouterr()
    assert run_checkpoint_tool(comm, arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (1 if comm.rank == 0 else 0)
    comm.Barrier()
    if comm.rank == 0:
        (path / DATA_FILE).unlink()
    comm.Barrier()
    assert run_checkpoint_tool(comm, arguments) == 1


def test_golden_checkpoint_is_converted_by_any_number_of_ranks(comm, folder):
    assert convert_checkpoint(comm, GOLDEN, folder / "new") == (1, 0)
    verify_checkpoint(comm, folder / "new")
    comm.Barrier()
    assert [path.name for path in folder.iterdir()] == ["new"]
    with CheckpointReader(GOLDEN) as old, CheckpointReader(folder / "new") as new:
        assert old.tensors == new.tensors
        for path, info in old.tensors.items():
            starts = (0,) * len(info.shape)
            np.testing.assert_array_equal(old.read(path, starts, info.shape), new.read(path, starts, info.shape))
    with pytest.raises(CheckpointError, match="it exists already"):
        convert_checkpoint(comm, GOLDEN, folder / "new")
