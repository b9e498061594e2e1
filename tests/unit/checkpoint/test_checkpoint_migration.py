"""Checkpoints of older format versions: a golden one, and the functions that bring them to today's."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from lepton_mpi.checkpoint import migration
from lepton_mpi.checkpoint.integrity import verify_checkpoint
from lepton_mpi.checkpoint.layout import TensorSlice
from lepton_mpi.checkpoint.migration import CURRENT_VERSION, MIGRATIONS, Content, convert_checkpoint, migrate
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.errors import CheckpointError

# Written by lepton_mpi 0.1.0 before it knew `best` and `stale`; never to be written anew.
GOLDEN = Path(__file__).parent / "golden" / "format-1.0" / "step-000000042"
WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4) / 8
BIAS = np.array([0.5, -1, 2, -4], np.float32)
TENSORS = {
    "/opt/momentum/layers.0.bias": 2 * BIAS,
    "/opt/momentum/layers.0.weight": -WEIGHT,
    "/param/layers.0.bias": BIAS,
    "/param/layers.0.weight": WEIGHT,
}


def read_all(path: Path):
    with CheckpointReader(path) as reader:
        return {name: reader.read(name, (0,) * len(info.shape), info.shape) for name, info in reader.tensors.items()}, reader


def test_golden_checkpoint_of_format_1_0_is_read(comm):
    verify_checkpoint(comm, GOLDEN)
    tensors, reader = read_all(GOLDEN)
    assert tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], expected)
    assert (reader.step, reader.manifest.format_minor, reader.manifest.written_at) == (42, 0, "")
    assert reader.attributes["position"] == 7


@pytest.mark.parametrize("name", ["step-000000042", "converted"])
def test_golden_checkpoint_is_converted(comm, tmp_path, name):
    assert convert_checkpoint(comm, GOLDEN, tmp_path / name) == (1, 0)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    verify_checkpoint(comm, tmp_path / name)
    tensors, reader = read_all(tmp_path / name)
    assert {path: array.tobytes() for path, array in tensors.items()} == {path: array.tobytes() for path, array in TENSORS.items()}
    assert (1, reader.manifest.format_minor) == CURRENT_VERSION
    assert (reader.step, reader.attributes["epoch"], reader.attributes["stale"]) == (42, 1, 0)
    assert math.isnan(reader.attributes["best"])
    with pytest.raises(CheckpointError, match="already, there is nothing to convert"):
        convert_checkpoint(comm, tmp_path / name, tmp_path / "again")


def test_every_old_version_leads_to_the_current_one():
    for version in MIGRATIONS:
        assert migrate(Content({}, {}), version) == Content({}, {})
    assert migrate(Content({"epoch": 2, "best": 0.5, "stale": 3}, {"/a/b": "/a/b"}), (1, 0)).attributes["best"] == 0.5
    assert math.isnan(float(migrate(Content({"epoch": 2}, {}), (1, 0)).attributes["best"]))
    with pytest.raises(CheckpointError, match=r"no conversion leads from format 0\.9"):
        migrate(Content({}, {}), (0, 9))


def test_migrations_may_rename_tensors(comm, tmp_path, monkeypatch):
    """Also scalars and tensors without elements come along."""
    odd = {"/old/scalar": np.array(7.0), "/old/empty": np.zeros((0, 3), np.float32), "/old/w": WEIGHT}
    old = write_checkpoint(comm, tmp_path / "old", 3, [TensorSlice(p, a.shape, (0,) * a.ndim, a) for p, a in odd.items()], {"x": 1})

    def rename(content: Content) -> Content:
        return Content(
            {**content.attributes, "y": 2}, {path.replace("/old", "/new"): source for path, source in content.sources.items()}
        )

    major, minor = CURRENT_VERSION
    monkeypatch.setattr(migration, "CURRENT_VERSION", (major, minor + 1))
    monkeypatch.setattr(migration, "MIGRATIONS", {(major, minor): ((major, minor + 1), rename)})
    convert_checkpoint(comm, old, tmp_path / "new")
    tensors, reader = read_all(tmp_path / "new")
    assert {path: (a.shape, a.tobytes()) for path, a in tensors.items()} == {
        path.replace("/old", "/new"): (a.shape, a.tobytes()) for path, a in odd.items()
    }
    assert (reader.attributes["x"], reader.attributes["y"], reader.step) == (1, 2, 3)


def test_what_is_not_converted(comm, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="it exists already"):
        convert_checkpoint(comm, GOLDEN, tmp_path / "there")
    with pytest.raises(CheckpointError, match="does not exist; make it first"):
        convert_checkpoint(comm, GOLDEN, tmp_path / "no" / "new")
    with pytest.raises(CheckpointError, match="is of step 42, so no reader would take it"):
        convert_checkpoint(comm, GOLDEN, tmp_path / "step-000000043")
    damaged = shutil.copytree(GOLDEN, tmp_path / "damaged")
    (damaged / "data.h5").write_bytes(b"")
    with pytest.raises(CheckpointError, match="expected 6754 bytes, found 0"):
        convert_checkpoint(comm, damaged, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "there"]


def test_failure_after_the_last_rename_is_reported_and_leaves_no_draft(comm, tmp_path, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(migration, "sync", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        convert_checkpoint(comm, GOLDEN, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
