"""What the ranks write together, any division of ranks and plain h5py read back bit for bit."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from lepton_mpi.checkpoint import drivers, layout
from lepton_mpi.checkpoint.drivers import mpio_obstacle
from lepton_mpi.checkpoint.integrity import verify_checkpoint
from lepton_mpi.checkpoint.layout import DATA_FILE, TensorSlice
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.runtime.ranges import split_range

pytestmark = pytest.mark.mpi

DRIVERS = ["direct", pytest.param("mpio", marks=pytest.mark.skipif(bool(mpio_obstacle()), reason=mpio_obstacle() or "-"))]
DIVISIONS = ["rows", "columns", "blocks", "last_rank", "interleaved"]


def make_tensors():
    rng = np.random.default_rng(7)
    return {
        "/param/layers.0.weight": rng.standard_normal((37, 23)).astype(np.float32),
        "/param/layers.0.bias": rng.standard_normal(37),
        "/param/conv.weight": rng.standard_normal((5, 4, 3, 3)).astype(np.float16),
        "/opt/momentum/layers.0.weight": rng.standard_normal((37, 23)).astype(np.float32),
        "/opt/one_row": rng.integers(-9, 9, (1, 50)),
        "/opt/count": np.array(12345, np.int64),
        "/rank_state/bytes": rng.integers(0, 256, 101).astype(np.uint8),
        "/residual/empty": np.zeros((0, 4), np.float32),
    }


def divide(path, whole, division, rank, size):
    """Return one rank's slices of a tensor; over the ranks they cover it once."""
    if whole.ndim == 0 or division == "last_rank":
        return [TensorSlice(path, whole.shape, (0,) * whole.ndim, whole)] if rank == size - 1 else []
    if division == "rows" or whole.ndim == 1:
        start, stop = split_range(whole.shape[0], size, rank)
        return [TensorSlice(path, whole.shape, (start,) + (0,) * (whole.ndim - 1), whole[start:stop])]
    if division == "columns":
        start, stop = split_range(whole.shape[1], size, rank)
        return [TensorSlice(path, whole.shape, (0, start) + (0,) * (whole.ndim - 2), whole[:, start:stop])]
    if division == "interleaved":
        rest = (0,) * (whole.ndim - 1)
        empty = TensorSlice(path, whole.shape, (0, *rest), whole[:0])
        return [empty, *(TensorSlice(path, whole.shape, (i, *rest), whole[i : i + 1]) for i in range(rank, len(whole), size))]
    row_parts = 2 if size % 2 == 0 else 1
    top, bottom = split_range(whole.shape[0], row_parts, rank % row_parts)
    left, right = split_range(whole.shape[1], size // row_parts, rank // row_parts)
    return [TensorSlice(path, whole.shape, (top, left) + (0,) * (whole.ndim - 2), whole[top:bottom, left:right])]


def all_slices(division, comm):
    return [s for path, whole in make_tensors().items() for s in divide(path, whole, division, comm.rank, comm.size)]


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("extent_nbytes", [64, 2**26])
def test_round_trip(comm, root, monkeypatch, driver, division, extent_nbytes):
    monkeypatch.setattr(layout, "EXTENT_NBYTES", extent_nbytes)
    path = write_checkpoint(comm, root, 12, all_slices(division, comm), {"grid": "1x1", "seed": 3, "loss": 0.5}, driver)
    assert path == root / "step-000000012"
    verify_checkpoint(comm, path)
    with CheckpointReader(path) as reader:
        assert reader.attributes.items() >= {"grid": "1x1", "seed": 3, "loss": 0.5, "step": 12, "format_major": 1}.items()
        assert reader.step == 12
        reader.require({name: (whole.shape, whole.dtype) for name, whole in make_tensors().items()})
        for name, whole in make_tensors().items():
            read = reader.read(name, (0,) * whole.ndim, whole.shape)
            assert read.dtype == whole.dtype
            assert read.tobytes() == whole.tobytes()


@pytest.mark.parametrize("loaded", DIVISIONS)
def test_other_divisions_read_their_own_blocks(comm, root, loaded):
    path = write_checkpoint(comm, root, 1, all_slices("blocks", comm), {})
    with CheckpointReader(path) as reader:
        for wanted in all_slices(loaded, comm):
            out = np.full(wanted.array.shape, 77, wanted.array.dtype)
            assert reader.read(wanted.path, wanted.starts, wanted.array.shape, out) is out
            assert out.tobytes() == wanted.array.tobytes()


@pytest.mark.parametrize("driver", DRIVERS)
def test_strided_sources(comm, root, driver):
    whole = np.arange(24 * 10, dtype=np.float64).reshape(24, 10)
    start, stop = split_range(whole.shape[0], comm.size, comm.rank)
    transposed = np.asfortranarray(whole)[start:stop]
    every_other = np.repeat(whole, 2, axis=1)[start:stop, ::2]
    slices = [TensorSlice("/a", whole.shape, (start, 0), transposed), TensorSlice("/b", whole.shape, (start, 0), every_other)]
    path = write_checkpoint(comm, root, 0, slices, {}, driver)
    with CheckpointReader(path) as reader:
        for name in ("/a", "/b"):
            np.testing.assert_array_equal(reader.read(name, (0, 0), whole.shape), whole)


def test_plain_h5py_reads_the_tensors(comm, root):
    path = write_checkpoint(comm, root, 5, all_slices("columns", comm), {"name": "größe"})
    with h5py.File(path / DATA_FILE, "r") as data:
        assert data["meta"].attrs["name"].decode() == "größe"
        for name, whole in make_tensors().items():
            assert data[name].chunks is None
            assert data[name].compression is None
            np.testing.assert_array_equal(data[name][()], whole)


@pytest.mark.skipif(bool(mpio_obstacle()), reason=mpio_obstacle() or "-")
def test_drivers_write_the_same_bytes(comm, root):
    files = [
        write_checkpoint(comm, root, step, all_slices("blocks", comm), {"seed": 1}, driver) / DATA_FILE
        for step, driver in enumerate(("direct", "mpio"))
    ]
    logical = []
    for file in files:
        objects = {}
        with h5py.File(file, "r") as data:
            data.visititems(objects.__setitem__)
            for name, item in objects.items():
                is_dataset = isinstance(item, h5py.Dataset)
                objects[name] = (item.shape, item.dtype, item[()].tobytes(), item.id.get_offset()) if is_dataset else None
            attributes = {k: v for k, v in data["meta"].attrs.items() if k != "step"}
        logical.append((objects, attributes))
    assert logical[0] == logical[1]
    assert files[0].stat().st_size == files[1].stat().st_size


def test_short_writes_are_completed(comm, root, monkeypatch):
    true_pwrite = drivers.os.pwrite
    monkeypatch.setattr(drivers.os, "pwrite", lambda fd, data, position: true_pwrite(fd, data[:7], position))
    verify_checkpoint(comm, write_checkpoint(comm, root, 5, all_slices("blocks", comm), {}, "direct"))


def test_same_step_is_replaced(comm, root):
    whole = np.arange(40.0)
    for factor in (1.0, 2.0):
        start, stop = split_range(whole.shape[0], comm.size, comm.rank)
        path = write_checkpoint(comm, root, 3, [TensorSlice("/w", whole.shape, (start,), whole[start:stop] * factor)], {})
    with CheckpointReader(path) as reader:
        np.testing.assert_array_equal(reader.read("/w", (0,), (40,)), whole * 2)
    comm.Barrier()
    assert sorted(entry.name for entry in root.iterdir()) == ["LATEST", "step-000000003"]


def test_no_tensors_at_all(comm, root):
    path = write_checkpoint(comm, root, 0, [], {"note": ""})
    verify_checkpoint(comm, path)
    with CheckpointReader(path) as reader:
        assert reader.tensors == {}
        assert reader.attributes["note"] == ""


def test_every_rank_may_pass_its_own_idea_of_the_shared_arguments(comm, root):
    step, driver = (4, "direct") if comm.rank == 0 else (5, "auto")
    path = write_checkpoint(comm, root, step, all_slices("rows", comm), {"rank": comm.rank}, driver)
    assert path.name == "step-000000004"
    with CheckpointReader(path) as reader:
        assert reader.attributes["rank"] == 0
