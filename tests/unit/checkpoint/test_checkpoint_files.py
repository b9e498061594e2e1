"""What a reader refuses: files that do harm, files that were changed, and requests that do not fit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from lepton_mpi.checkpoint import drivers, hdf5, manifest, space
from lepton_mpi.checkpoint.drivers import mpi_libraries, ompio_corrupts
from lepton_mpi.checkpoint.failure import as_checkpoint_error, failing_together
from lepton_mpi.checkpoint.hdf5 import DataFile
from lepton_mpi.checkpoint.integrity import verify_checkpoint
from lepton_mpi.checkpoint.layout import DATA_FILE, EXTENT_TABLE, MANIFEST_FILE, TENSOR_INDEX, TensorSlice
from lepton_mpi.checkpoint.manifest import Manifest, digest_ranges, frame_ranges, read_manifest
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.errors import CheckpointError, RankMismatchError

WEIGHT = np.arange(48, dtype=np.float32).reshape(8, 6)


def save(comm, root, attributes=None, step=1):
    slices = [TensorSlice("/param/w", (8, 6), (0, 0), WEIGHT), TensorSlice("/param/bias", (6,), (0,), WEIGHT[0])]
    return write_checkpoint(comm, root, step, slices, attributes or {})


def seal(checkpoint: Path) -> None:
    """Make the manifest agree with a data file that a test changed."""
    old = read_body(checkpoint)
    nbytes = (checkpoint / DATA_FILE).stat().st_size
    whole = ((0, nbytes),)
    sha256 = digest_ranges(checkpoint / DATA_FILE, whole)
    new = Manifest(old["step"], old["writer"], nbytes, old["num_tensors"], old["num_extents"], whole, sha256)
    (checkpoint / MANIFEST_FILE).write_text(new.to_json())


def sealed(body: dict) -> str:
    """Return a manifest of any content with a digest that fits."""
    body = {name: value for name, value in body.items() if name != "sha256"}
    sha256 = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps({**body, "sha256": sha256}, indent=1) + "\n"


def read_body(checkpoint: Path) -> dict:
    return json.loads((checkpoint / MANIFEST_FILE).read_text())


@pytest.fixture
def checkpoint(comm, tmp_path):
    return save(comm, tmp_path / "checkpoints")


def add_soft_link(data):
    data["param/soft"] = h5py.SoftLink("/param/w")


def add_external_link(data):
    data["param/external"] = h5py.ExternalLink("/etc/other.h5", "/x")


def add_second_name(data):
    data["param/again"] = data["param/w"]


def add_cycle(data):
    data["param/loop"] = data["/"]


def add_external_storage(data):
    data.create_dataset("param/x", (4,), "f4", external=[("other.bin", 0, 16)])


def add_virtual_dataset(data):
    virtual = h5py.VirtualLayout((4,), "f4")
    virtual[:] = h5py.VirtualSource("other.h5", "x", (4,))
    data.create_virtual_dataset("param/x", virtual)


def add_filter(data):
    data.create_dataset("param/x", data=np.zeros(64), compression="gzip")


def add_chunks(data):
    data.create_dataset("param/x", data=np.zeros(64), chunks=(8,))


def add_unallocated(data):
    data.create_dataset("param/x", (2**40,), "f8")


def add_variable_length(data):
    data.create_dataset("param/x", data=["text"], dtype=h5py.string_dtype())


def add_null_space(data):
    data["param/x"] = h5py.Empty("f4")


def add_named_type(data):
    data["param/x"] = np.dtype("f4")


def add_text_tensor(data):
    data.create_dataset("param/x", data=np.zeros(2, "S4"))


def add_text_attribute(data):
    data["meta"].attrs["note"] = "variable length"


def add_array_attribute(data):
    data["meta"].attrs["many"] = np.zeros(3)


def remove_meta(data):
    del data["meta"]


DANGERS = [
    (add_soft_link, "soft or external link"),
    (add_external_link, "soft or external link"),
    (add_second_name, "second name"),
    (add_cycle, "second name"),
    (add_external_storage, "external file"),
    (add_virtual_dataset, "virtual dataset"),
    (add_filter, "filter"),
    (add_chunks, "not contiguous"),
    (add_unallocated, "do not lie in the file"),
    (add_variable_length, "no fixed-size elements"),
    (add_null_space, "no fixed-size elements"),
    (add_named_type, "neither a group nor a dataset"),
    (add_text_tensor, "not one of a checkpoint's"),
    (add_text_attribute, "no number or fixed-length text"),
    (add_array_attribute, "no number or fixed-length text"),
    (remove_meta, "missing"),
]


@pytest.mark.parametrize(("change", "message"), DANGERS, ids=[change.__name__ for change, _ in DANGERS])
def test_dangerous_structure_is_refused_even_with_a_matching_manifest(comm, checkpoint, change, message):
    with h5py.File(checkpoint / DATA_FILE, "r+") as data:
        change(data)
    seal(checkpoint)
    for attempt in (lambda: CheckpointReader(checkpoint), lambda: verify_checkpoint(comm, checkpoint)):
        with pytest.raises(CheckpointError, match=message) as caught:
            attempt()
        assert str(checkpoint / DATA_FILE) in str(caught.value)


@pytest.mark.parametrize("path", [TENSOR_INDEX, EXTENT_TABLE])
def test_missing_integrity_table(comm, checkpoint, path):
    with h5py.File(checkpoint / DATA_FILE, "r+") as data:
        del data[path]
    seal(checkpoint)
    with pytest.raises(CheckpointError, match=f"{path} refused: missing"):
        verify_checkpoint(comm, checkpoint)


def test_tensor_index_of_another_file(comm, checkpoint):
    with h5py.File(checkpoint / DATA_FILE, "r+") as data:
        data[TENSOR_INDEX][0] = b"/param/v"
    seal(checkpoint)
    with pytest.raises(CheckpointError, match="does not list the tensors"):
        verify_checkpoint(comm, checkpoint)


def test_extent_table_must_match_elements(comm, checkpoint):
    with h5py.File(checkpoint / DATA_FILE, "r+") as data:
        data["param/w"][7, 5] = -1
    with pytest.raises(CheckpointError, match=r"tensor /param/w, extent \[0:8, 0:6\]: expected CRC-32 0x"):
        verify_checkpoint(comm, checkpoint)


def test_every_single_byte_counts(comm, checkpoint):
    """Each byte of the data file, inverted, fails the verification; the frame and the tensors leave no gap."""
    file = checkpoint / DATA_FILE
    good = file.read_bytes()
    for position in range(0, len(good), 1 if len(good) < 3000 else len(good) // 3000):
        file.write_bytes(good[:position] + bytes([good[position] ^ 0xFF]) + good[position + 1 :])
        with pytest.raises(CheckpointError):
            verify_checkpoint(comm, checkpoint)
    file.write_bytes(good)
    verify_checkpoint(comm, checkpoint)


@pytest.mark.parametrize("size", [0, 1, 100, -1, 1])
def test_truncation_at_any_length(comm, checkpoint, size):
    file = checkpoint / DATA_FILE
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    for attempt in (lambda: CheckpointReader(checkpoint), lambda: verify_checkpoint(comm, checkpoint)):
        with pytest.raises(CheckpointError, match=r"expected \d+ bytes, found"):
            attempt()


def test_not_hdf5_at_all(tmp_path):
    (tmp_path / "data.h5").write_bytes(b"\0" * 5000)
    with pytest.raises(CheckpointError, match="not a readable HDF5 file"):
        DataFile(tmp_path / "data.h5")


def test_structure_error_inside_hdf5_is_a_checkpoint_error(checkpoint, monkeypatch):
    def fail(self):
        raise KeyError("bad heap")

    monkeypatch.setattr(DataFile, "_read_attributes", fail)
    with pytest.raises(CheckpointError, match="damaged HDF5 structure"):
        DataFile(checkpoint / DATA_FILE)


def test_read_error_names_the_extent(checkpoint, monkeypatch):
    def fail(dataset, starts, shape):
        raise OSError(errno.EIO, "Input/output error")

    with CheckpointReader(checkpoint) as reader:
        monkeypatch.setattr(hdf5, "select_block", fail)
        with pytest.raises(CheckpointError, match=r"/param/w, extent \[2:4, 0:6\]: cannot be read"):
            reader.read("/param/w", (2, 0), (2, 6))


def test_manifest_missing_or_unreadable(checkpoint):
    for text in ("", "{}", "[]", "3", '"x"', '{"sha256": 1}', "\x00"):
        (checkpoint / MANIFEST_FILE).write_text(text)
        with pytest.raises(CheckpointError, match="not a manifest"):
            read_manifest(checkpoint)
    (checkpoint / MANIFEST_FILE).unlink()
    with pytest.raises(CheckpointError, match="never completed"):
        read_manifest(checkpoint)


def test_every_altered_manifest_value_is_refused(checkpoint):
    body = read_body(checkpoint)
    for name in body.keys() - {"format", "format_major"}:
        altered = {**body, name: "0" * 64 if body[name] != "0" * 64 else "1"}
        (checkpoint / MANIFEST_FILE).write_text(json.dumps(altered))
        with pytest.raises(CheckpointError, match="altered since it was written"):
            read_manifest(checkpoint)


@pytest.mark.parametrize(("name", "value"), [("FORMAT_MAJOR", 2), ("_FORMAT_NAME", "other checkpoint")])
def test_unknown_format_is_refused(checkpoint, monkeypatch, name, value):
    with monkeypatch.context() as patch:
        patch.setattr(manifest, name, value)
        seal(checkpoint)
    with pytest.raises(CheckpointError, match="use the version that wrote it"):
        CheckpointReader(checkpoint)


def test_newer_minor_version_is_read(checkpoint):
    (checkpoint / MANIFEST_FILE).write_text(sealed(read_body(checkpoint) | {"format_minor": 9, "colour": "blue"}))
    with CheckpointReader(checkpoint) as reader:
        assert reader.manifest.format_minor == 9
        assert reader.tensors


@pytest.mark.parametrize(
    ("name", "value"), [*(("frame", value) for value in (3, [[1]], [[-1, 5]], [[0, 1e999]], None)), ("step", None)]
)
def test_sealed_manifest_of_something_else_is_refused(checkpoint, name, value):
    body = read_body(checkpoint) | {name: value}
    if value is None:
        del body[name]
    (checkpoint / MANIFEST_FILE).write_text(sealed(body))
    with pytest.raises(CheckpointError, match="not a manifest of a checkpoint"):
        read_manifest(checkpoint)


def test_frame_that_cannot_be_read(checkpoint, monkeypatch):
    def fail(descriptor, nbytes, offset):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifest.os, "pread", fail)
    with pytest.raises(CheckpointError, match=r"data\.h5: cannot be read"):
        CheckpointReader(checkpoint)


def test_manifest_in_other_words_is_refused(checkpoint):
    text = (checkpoint / MANIFEST_FILE).read_text()
    for other in (text[:-1], text + "\n", text.replace("\n ", "\n  "), json.dumps(json.loads(text))):
        (checkpoint / MANIFEST_FILE).write_text(other)
        with pytest.raises(CheckpointError, match="altered since it was written"):
            read_manifest(checkpoint)


@pytest.mark.parametrize("name", [DATA_FILE, MANIFEST_FILE])
def test_links_and_pipes_in_the_place_of_files_are_refused(checkpoint, name):
    (checkpoint / name).rename(checkpoint / "moved")
    (checkpoint / name).symlink_to(checkpoint / "moved")
    with pytest.raises(CheckpointError, match="expected a regular file, found a link"):
        read_manifest(checkpoint)
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    with pytest.raises(CheckpointError, match="expected a regular file, found something else"):
        read_manifest(checkpoint)


def test_manifest_without_end_is_refused(checkpoint):
    os.truncate(checkpoint / MANIFEST_FILE, 2**28 + 1)
    with pytest.raises(CheckpointError, match="at most 268435456 bytes"):
        read_manifest(checkpoint)
    (checkpoint / MANIFEST_FILE).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="not a manifest"):
        read_manifest(checkpoint)


def test_folder_named_after_another_step(checkpoint):
    moved = checkpoint.rename(checkpoint.with_name("step-000000007"))
    with pytest.raises(CheckpointError, match="its manifest is of step 1, so the folder was renamed"):
        read_manifest(moved)
    assert read_manifest(moved.rename(moved.with_name("best"))).step == 1


def test_missing_data_file(checkpoint):
    (checkpoint / DATA_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"data\.h5: missing"):
        CheckpointReader(checkpoint)


def test_data_file_of_another_checkpoint(comm, checkpoint):
    other = save(comm, checkpoint.parent, step=2)
    (other / DATA_FILE).replace(checkpoint / DATA_FILE)
    for attempt in (lambda: CheckpointReader(checkpoint), lambda: verify_checkpoint(comm, checkpoint)):
        with pytest.raises(CheckpointError, match="structure, attributes or digest tables changed"):
            attempt()
    seal(checkpoint)
    with pytest.raises(CheckpointError, match="belongs to another checkpoint"):
        CheckpointReader(checkpoint)


def test_manifest_that_leaves_bytes_or_extents_out(comm, checkpoint):
    body = read_body(checkpoint)
    (checkpoint / MANIFEST_FILE).write_text(sealed(body | {"num_extents": 1}))
    with pytest.raises(CheckpointError, match="belongs to another checkpoint"):
        verify_checkpoint(comm, checkpoint)
    frame = [[start + 1, stop] for start, stop in body["frame"]]
    sha256 = digest_ranges(checkpoint / DATA_FILE, frame)
    (checkpoint / MANIFEST_FILE).write_text(sealed(body | {"frame": frame, "frame_sha256": sha256}))
    with pytest.raises(CheckpointError, match="bytes that no digest covers"):
        verify_checkpoint(comm, checkpoint)


def test_extent_table_that_leaves_elements_out(comm, checkpoint):
    with h5py.File(checkpoint / DATA_FILE, "r+") as data:
        data[EXTENT_TABLE][0] = data[EXTENT_TABLE][1]
    body = read_body(checkpoint)
    sha256 = digest_ranges(checkpoint / DATA_FILE, body["frame"])
    (checkpoint / MANIFEST_FILE).write_text(sealed(body | {"frame_sha256": sha256}))
    with pytest.raises(CheckpointError, match="hold 0 of its 6 elements"):
        verify_checkpoint(comm, checkpoint)


def test_frame_ranges_are_the_complement():
    assert frame_ranges(100, [(40, 20), (10, 30), (70, 30)]) == ((0, 10), (60, 70))
    assert frame_ranges(5, []) == ((0, 5),)


def test_digest_of_a_range_beyond_the_end(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(CheckpointError, match="ends at byte 5, expected 9"):
        digest_ranges(tmp_path / "file", [(0, 9)])


def test_read_blocks_and_outputs(checkpoint):
    with CheckpointReader(checkpoint) as reader:
        np.testing.assert_array_equal(reader.read("/param/w", (2, 1), (3, 4)), WEIGHT[2:5, 1:5])
        strided = np.zeros((3, 8), np.float32)[:, ::2]
        assert reader.read("/param/w", (2, 1), (3, 4), strided) is strided
        np.testing.assert_array_equal(strided, WEIGHT[2:5, 1:5])
        assert reader.read("/param/w", (8, 0), (0, 6)).shape == (0, 6)


@pytest.mark.parametrize(
    ("path", "starts", "shape", "out", "message"),
    [
        ("/param/v", (0, 0), (1, 1), None, "no tensor /param/v"),
        ("/param/w", (7, 0), (2, 6), None, "has no block"),
        ("/param/w", (-1, 0), (2, 6), None, "has no block"),
        ("/param/w", (0,), (6,), None, "has no block"),
        ("/param/w", (0, 0), (2, 6), np.zeros((2, 5), np.float32), "expected an array of shape"),
        ("/param/w", (0, 0), (2, 6), np.zeros((2, 6)), "expected an array of shape"),
    ],
)
def test_impossible_reads(checkpoint, path, starts, shape, out, message):
    with CheckpointReader(checkpoint) as reader, pytest.raises(CheckpointError, match=message):
        reader.read(path, starts, shape, out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"/param/bias": ((7,), np.dtype(np.float32))}, r"/param/bias: the model has shape \(7,\) .*, the checkpoint shape \(6,\)"),
        ({"/param/w": ((8, 6), np.dtype(np.float64))}, "/param/w: the model has shape .* of float64, the checkpoint .* of float32"),
        ({"/param/a": ((), np.dtype(np.int64))}, "/param/a: .* the checkpoint no such tensor"),
        ({"/param/w": None}, "/param/w: the model has no such tensor"),
        ({"/param/w": ((1,), np.dtype(np.int8)), "/param/bias": ((7,), np.dtype(np.float32))}, "/param/bias"),
    ],
)
def test_require_names_the_first_difference(checkpoint, change, message):
    model = {"/param/w": ((8, 6), np.dtype(np.float32)), "/param/bias": ((6,), np.dtype(np.float32))}
    with CheckpointReader(checkpoint) as reader:
        reader.require(model)
        model = {path: info for path, info in {**model, **change}.items() if info is not None}
        with pytest.raises(CheckpointError, match=message):
            reader.require(model)


def test_attributes_return_as_written(comm, tmp_path):
    attributes = {"text": "größe\n", "empty": "", "long": "x" * 200_000}
    attributes |= {"big": 2**63 - 1, "small": -(2**63), "real": 0.1, "infinite": float("inf")}
    path = save(comm, tmp_path, attributes)
    verify_checkpoint(comm, path)
    with CheckpointReader(path) as reader:
        assert {name: reader.attributes[name] for name in attributes} == attributes
        assert reader.attributes["writer"].startswith("lepton_mpi ")


@pytest.mark.parametrize("attributes", [{"x": 2**63}, {"x": [1]}, {"x": "a\0b"}, {"x": None}])
def test_impossible_attributes(comm, tmp_path, attributes):
    with pytest.raises(CheckpointError, match="cannot be stored"):
        save(comm, tmp_path, attributes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("step", "attributes"), [(1, {"step": 2}), (1, {"writer": "me"}), (-1, {})])
def test_reserved_attributes_and_negative_steps(comm, tmp_path, step, attributes):
    with pytest.raises(CheckpointError, match="which the writer sets"):
        save(comm, tmp_path, attributes, step)
    assert list(tmp_path.iterdir()) == []


def test_errors_keep_their_meaning(comm):
    with pytest.raises(RankMismatchError), failing_together(comm, "compare"):
        raise RankMismatchError("differ")
    assert "cannot count: ValueError: no" in str(as_checkpoint_error(ValueError("no"), "count"))
    assert "free space" in str(as_checkpoint_error(OSError("no"), "write"))


def test_mpi_libraries_of_a_process():
    maps = """\
7f00-7f01 r-xp 00000000 08:01 11 /env/lib/libmpi.so.40.40.7
7f01-7f02 r--p 00000000 08:01 11 /env/lib/libmpi.so.40.40.7
7f02-7f03 r-xp 00000000 08:01 12 /usr/lib/libmpi_mpifh.so.40
7f03-7f04 r-xp 00000000 08:01 13 /usr/lib/with space/libmpich.so.12
7f04-7f05 rw-p 00000000 00:00 0
7f05-7f06 rw-p 00000000 00:00 0 [heap]
"""
    assert mpi_libraries(maps) == {"/env/lib/libmpi.so.40.40.7", "/usr/lib/with space/libmpich.so.12"}


def test_mpio_obstacles(monkeypatch):
    monkeypatch.setattr(drivers, "mpi_libraries", lambda maps: {"/a/libmpi.so", "/b/libmpich.so"})
    config = type("Config", (), {"mpi": True})()
    monkeypatch.setattr(drivers.h5py, "get_config", lambda: config)
    assert "different MPI libraries, /a/libmpi.so and /b/libmpich.so" in drivers.mpio_obstacle()
    monkeypatch.setattr(drivers, "mpi_libraries", lambda maps: {"/a/libmpi.so"})
    assert drivers.mpio_obstacle() == ""
    config.mpi = False
    assert drivers.mpio_obstacle() == "h5py was built without MPI"


@pytest.mark.parametrize(
    ("vendor", "version", "corrupts"),
    [
        ("Open MPI", (4, 1, 4), True),
        ("Open MPI", (4, 1, 7), False),
        ("Open MPI", (5, 0, 5), True),
        ("Open MPI", (5, 0, 6), False),
        ("Open MPI", (5, 1, 0), False),
        ("MPICH", (4, 0, 2), False),
    ],
)
def test_known_corruption(vendor, version, corrupts):
    assert ompio_corrupts(vendor, version) is corrupts


class FakeFallocate:
    def __init__(self, codes):
        self.codes = codes

    def __call__(self, *arguments):
        if not self.codes:
            return 0
        space.ctypes.set_errno(self.codes.pop(0))
        return -1


@pytest.fixture
def sized_file(tmp_path):
    file = tmp_path / "file"
    file.touch()
    os.truncate(file, 10_000)
    return file


def fake_library(monkeypatch, codes):
    library = type("Library", (), {"fallocate64": FakeFallocate(codes)})()
    monkeypatch.setattr(space.ctypes, "CDLL", lambda name, use_errno: library)


def test_space_is_reserved(sized_file):
    space.reserve_space(sized_file)
    assert sized_file.stat().st_size == 10_000
    assert sized_file.stat().st_blocks * 512 >= 10_000


def test_full_disk_is_reported_and_signals_are_not(sized_file, monkeypatch):
    fake_library(monkeypatch, [errno.EINTR])
    space.reserve_space(sized_file)
    fake_library(monkeypatch, [errno.EINTR, errno.ENOSPC])
    with pytest.raises(OSError, match="No space left on device"):
        space.reserve_space(sized_file)


def test_free_space_is_compared_where_it_cannot_be_reserved(sized_file, monkeypatch):
    fake_library(monkeypatch, [errno.EOPNOTSUPP, errno.EOPNOTSUPP])
    space.reserve_space(sized_file)
    status = type("Status", (), {"f_bavail": 2, "f_frsize": 4096})()
    monkeypatch.setattr(space.os, "statvfs", lambda file: status)
    with pytest.raises(OSError, match="needs 10000 bytes, the file system has 8192 left"):
        space.reserve_space(sized_file)


def test_the_way_to_the_disk_begins_on_linux_alone(sized_file, monkeypatch):
    sized_file.write_bytes(b"x" * 5000)
    with sized_file.open("rb") as written:
        space.start_sync(written.fileno())
    assert sized_file.read_bytes() == b"x" * 5000
    monkeypatch.setattr(space.sys, "platform", "darwin")
    space.start_sync("no descriptor")


def test_import_does_not_start_mpi():
    """A parallel h5py would initialise MPI as soon as it is imported, were mpi4py not told otherwise before."""
    modules = ", ".join(f"lepton_mpi.checkpoint.{name}" for name in ("hdf5", "reader", "writer", "resume"))
    code = f"import {modules}; from mpi4py import MPI; raise SystemExit(MPI.Is_initialized())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
