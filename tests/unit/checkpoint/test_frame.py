"""Files made of the bytes of an earlier one: the same structure, the attributes of now."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from lepton_mpi.checkpoint import frame
from lepton_mpi.checkpoint.frame import FileMaker
from lepton_mpi.checkpoint.hdf5 import DataFile, create_data_file
from lepton_mpi.checkpoint.layout import EXTENT_TABLE, TensorInfo
from lepton_mpi.checkpoint.storage import DEFAULT_STORAGE, Storage
from lepton_mpi.errors import CheckpointError

FLOAT32 = np.dtype(np.float32)
SHAPES = {"/opt/m/a": (7, 300), "/opt/m/b": (), "/param/a": (7, 300), "/param/b": (), "/param/c": (0, 3), "/param/d": (5000,)}
TENSORS = {path: TensorInfo(shape, FLOAT32) for path, shape in SHAPES.items()}
TABLE = np.ones(9, [("tensor", "<u4"), ("crc32", "<u4")])
ATTRIBUTES = [
    {"step": 1, "best": float("nan"), "grid": "2x2 \u00e4", "empty": ""},
    {"step": 2, "best": float("nan"), "grid": "2x2 \u00e4", "empty": ""},
    {"step": -3, "best": 0.25, "grid": "4x1 \u00f6", "empty": ""},
]


@pytest.fixture
def built(monkeypatch):
    """Count the files that HDF5 builds."""
    files, true_create = [], create_data_file

    def create(file, *arguments):
        files.append(file.name)
        return true_create(file, *arguments)

    monkeypatch.setattr(frame, "create_data_file", create)
    return files


def structure(file):
    with h5py.File(file) as data:
        found = {}
        data.visititems(lambda name, item: found.update({name: (getattr(item, "shape", None), getattr(item, "dtype", None))}))
        offsets = {name: item.id.get_offset() for name, item in ((n, data[n]) for n in found) if isinstance(item, h5py.Dataset)}
        table = data[EXTENT_TABLE][...].tobytes()
    with DataFile(file) as checked:  # refuses what checkpoints never have
        return found, offsets, table, repr(checked.attributes), {path: info.shape for path, info in checked.tensors.items()}


@pytest.mark.parametrize("storage", [DEFAULT_STORAGE, Storage(alignment=2**16), Storage(hints=("striping_factor=2",))])
def test_later_files_are_what_building_them_would_make(tmp_path, comm, built, storage):  # hints need MPI
    maker = FileMaker(TENSORS, TABLE, storage)
    for index, attributes in enumerate(ATTRIBUTES):
        file, other = tmp_path / f"made{index}", tmp_path / f"built{index}"
        offsets = maker.make(file, attributes)
        assert offsets == create_data_file(other, TENSORS, attributes, TABLE, storage)
        assert structure(file) == structure(other)
        assert file.stat().st_size == other.stat().st_size
    assert built == ["made0"]


def test_tensors_written_into_it_are_read_from_it(tmp_path):
    maker = FileMaker(TENSORS, TABLE, DEFAULT_STORAGE)
    for index, attributes in enumerate(ATTRIBUTES):
        file = tmp_path / str(index)
        offsets = maker.make(file, attributes)
        values = np.arange(5000, dtype=np.float32) * index
        with open(file, "r+b") as stream:
            stream.seek(offsets["/param/d"])
            stream.write(values.tobytes())
        with DataFile(file) as data:
            assert np.array_equal(data.read("/param/d", (0,), (5000,)), values)
            assert not data.read("/param/a", (0, 0), (7, 300)).any()


@pytest.mark.parametrize("other", [{"step": 1, "best": 0.5, "grid": "longer than before", "empty": ""}, {"step": 1.0}, {}])
def test_other_kinds_of_attributes_are_built_anew(tmp_path, built, other):
    maker = FileMaker(TENSORS, TABLE, DEFAULT_STORAGE)
    for index, attributes in enumerate((ATTRIBUTES[0], other, other)):
        maker.make(tmp_path / str(index), attributes)
        with DataFile(tmp_path / str(index)) as data:
            assert repr(data.attributes) == repr(dict(sorted(attributes.items())))
    assert built == ["0", "1"]


def test_a_wide_alignment_is_not_kept(tmp_path, built, monkeypatch):
    monkeypatch.setattr(frame, "_MAX_KEPT_NBYTES", 100)
    maker = FileMaker(TENSORS, TABLE, DEFAULT_STORAGE)
    for index, attributes in enumerate(ATTRIBUTES):
        maker.make(tmp_path / str(index), attributes)
    assert built == ["0", "1", "2"]


def test_a_file_that_is_there_stays(tmp_path):
    maker = FileMaker(TENSORS, TABLE, DEFAULT_STORAGE)
    maker.make(tmp_path / "a", ATTRIBUTES[0])
    (tmp_path / "b").write_text("here")
    with pytest.raises(FileExistsError):
        maker.make(tmp_path / "b", ATTRIBUTES[1])
    assert (tmp_path / "b").read_text() == "here"


def test_an_attribute_that_cannot_be_stored(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be stored"):
        FileMaker(TENSORS, TABLE, DEFAULT_STORAGE).make(tmp_path / "a", {"x": "a\0b"})


def test_a_file_cut_while_it_is_read(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(OSError, match="ends at byte 5, expected 9"):
        frame._parts(tmp_path / "a", [(0, 4), (4, 9)])
