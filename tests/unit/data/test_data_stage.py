"""data.stage_dir: files, folders and patterns copied once, checked, used again, and what stands in the way."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.splits import open_datasets, open_whole
from lepton_mpi.data.storage import staging
from lepton_mpi.data.storage.conversion import Source, convert
from lepton_mpi.data.storage.drafts import Draft
from lepton_mpi.data.storage.staging import list_files, stage, stage_paths
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.runtime.mpi import start_mpi

X = np.arange(60, dtype=np.float32).reshape(15, 4)
Y = np.arange(15) % 3


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    np.savez(folder / "d.npz", x=X, y=Y)
    with h5py.File(folder / "d.h5", "w") as file:
        file["x"], file["y"] = X, Y
    (folder / "d.csv").write_text("a,label\n" + "\n".join(f"{n}.5,{n % 3}" for n in range(15)))
    (folder / "text" / "deep").mkdir(parents=True)
    (folder / "text" / "b.txt").write_text("to be or not to be")
    (folder / "text" / "deep" / "a.txt").write_text("that is the question")
    (folder / "text" / "link.txt").symlink_to("b.txt")
    convert(ArrayDataset("made", X, Y, 3), Source("npz"), folder / "packed", start_mpi())
    return folder


SOURCES = {
    "npy": {"path": "x.npy", "labels_path": "y.npy", "test_path": "x.npy", "test_labels_path": "y.npy"},
    "npz": {"path": "d.npz", "test_path": "d.npz"},
    "hdf5": {"path": "d.h5"},
    "csv": {"path": "d.csv"},
    "text": {"path": "text"},
    "packed": {"path": "packed"},
}


@pytest.mark.parametrize("name", SOURCES)
def test_training_reads_the_copy(files: Path, tmp_path: Path, name: str) -> None:
    comm, needs, local = start_mpi(), DataNeeds(context=4), tmp_path / "local"
    paths = {key: str(files / value) for key, value in SOURCES[name].items()}
    plain = DataConfig(format=name, test_fraction=0.3, **paths)
    staged = DataConfig(format=name, test_fraction=0.3, stage_dir=str(local), **paths)
    found = stage(staged, comm)
    for key, path in paths.items():
        copy = Path(getattr(found, key))
        assert local in copy.parents and copy.name == os.path.basename(path)
    before, whole = open_datasets(plain, comm, needs), open_whole(plain, comm, needs)
    files.rename(files.with_name("gone"))
    with pytest.raises(DataError, match="expected a readable data file or folder: No such file"):
        open_datasets(staged, comm, needs)  # what is staged is looked at first, as it may have changed
    files.with_name("gone").rename(files)
    after = open_datasets(staged, comm, needs)
    for one, other in ((before.train, after.train), (before.test, after.test), (whole, open_whole(staged, comm, needs))):
        assert one.name == other.name
        everything = np.arange(one.num_samples)
        np.testing.assert_array_equal(one.read_raw(everything), other.read_raw(everything))
        np.testing.assert_array_equal(one.read_labels(everything), other.read_labels(everything))
    assert len(list(local.iterdir())) == len(set(paths.values()))


def test_nothing_to_do(files: Path, tmp_path: Path) -> None:
    for config in (DataConfig(stage_dir=str(tmp_path / "local")), DataConfig(format="npz", path=str(files / "d.npz"))):
        assert stage(config, start_mpi()) is config
    assert not (tmp_path / "local").exists()


def copy_of(files: Path, name: str, local: Path) -> Path:
    return Path(stage_paths({"path": str(files / name)}, local)["path"])


def test_a_folder_keeps_its_links(files: Path, tmp_path: Path) -> None:
    copy = copy_of(files, "text", tmp_path / "local")
    assert (copy / "deep" / "a.txt").read_text() == "that is the question"
    assert (copy / "link.txt").is_symlink() and (copy / "link.txt").read_text() == "to be or not to be"
    (files / "empty").mkdir()
    assert list(copy_of(files, "empty", tmp_path / "local").iterdir()) == []


@pytest.mark.parametrize("pattern", ["*.npy", "t*/deep/?.txt", "text/*.txt"])
def test_patterns_of_names(files: Path, tmp_path: Path, pattern: str) -> None:
    copy = copy_of(files, pattern, tmp_path / "local")
    found, expected = sorted(copy.parent.glob(copy.name)), sorted(files.glob(pattern))
    if pattern.startswith("t*"):
        found = sorted(copy.parent.parent.parent.glob(pattern))
    assert [path.read_bytes() for path in found] == [path.read_bytes() for path in expected] and found
    assert all(tmp_path / "local" in path.parents for path in found)


def test_a_whole_copy_is_used_again(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copy_of(files, "d.npz", tmp_path / "local")
    with monkeypatch.context() as patched:
        patched.setattr(staging, "_copy", None)
        assert copy_of(files, "d.npz", tmp_path / "local") == copy
    np.savez(files / "d.npz", x=X[:7], y=Y[:7])
    other = copy_of(files, "d.npz", tmp_path / "local")
    assert other != copy and copy.exists() and other.read_bytes() == (files / "d.npz").read_bytes()
    (files / "also.npz").symlink_to("d.npz")  # another name of the same file does not take its copy away
    assert copy_of(files, "also.npz", tmp_path / "local").name == "also.npz"
    assert copy_of(files, "d.npz", tmp_path / "local").exists()


@pytest.mark.parametrize("damage", ["cut", "removed", "unlisted", "garbled"])
def test_a_damaged_copy_is_replaced(files: Path, tmp_path: Path, damage: str) -> None:
    copy = copy_of(files, "d.npz", tmp_path / "local")
    listed = copy.parent.parent / staging.COPY_FILE
    if damage == "cut":
        os.truncate(copy, 10)
    elif damage == "removed":
        copy.unlink()
    elif damage == "unlisted":
        listed.unlink()
    else:
        listed.write_text("[[1")
    assert copy_of(files, "d.npz", tmp_path / "local") == copy
    assert copy.read_bytes() == (files / "d.npz").read_bytes()
    assert json.loads(listed.read_text())[0][1] == copy.stat().st_size


def test_copies_of_killed_jobs_are_removed(files: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    left = local / f".{'0' * 32}.0123456789abcdef.tmp"
    left.mkdir(parents=True)
    (left / "data").write_text("half")
    growing = Draft(local / "other")
    copy_of(files, "d.npz", local)
    assert not left.exists() and growing.path.exists()
    growing.close()


def test_the_faster_of_two_jobs_wins(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, elsewhere = tmp_path / "local", tmp_path / "elsewhere"
    made = copy_of(files, "d.npz", elsewhere)
    copy_all = staging._copy_all

    def slow(*arguments) -> None:
        copy_all(*arguments)
        if not (local / made.parts[-3]).exists():
            shutil.copytree(made.parent.parent, local / made.parts[-3])

    monkeypatch.setattr(staging, "_copy_all", slow)
    before = (made.parent.parent / staging.COPY_FILE).stat().st_mtime_ns
    copy = copy_of(files, "d.npz", local)
    assert (copy.parent.parent / staging.COPY_FILE).stat().st_mtime_ns == before
    assert len(list(local.iterdir())) == 1


def test_what_stands_in_the_way(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbytes = (files / "d.npz").stat().st_size
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=f"data.stage_dir .*file/x: Not a directory: the data needs {nbytes} bytes, [0-9]+ are free"
    ):
        copy_of(files, "d.npz", tmp_path / "file" / "x")
    os.mkfifo(files / "pipe")
    for name, message in (("none", "No such file"), ("a\0b", "null"), ("pipe", "found a device or pipe")):
        with pytest.raises(DataError, match=message):
            copy_of(files, name, tmp_path / "local")
    with pytest.raises(DataError, match="found a device or pipe"):
        list_files(str(files))
    (files / "pipe").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(staging, "free_nbytes", lambda _: 9)
        with pytest.raises(
            DataError, match=f"data.stage_dir .*: no space left on the disk: the data needs {nbytes} bytes, 9 are free"
        ):
            copy_of(files, "d.npz", tmp_path / "local")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=f"No space left on device: the data needs {nbytes} bytes, [0-9]+ are free: make room"):
            copy_of(files, "d.npz", tmp_path / "local")
    assert list((tmp_path / "local").iterdir()) == []


def test_sources_that_fail_meanwhile(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_blocks, target = staging._read_blocks, tmp_path / "local"

    def corrupt(path):
        for block in read_blocks(path):
            yield b"x" + block[1:] if target in Path(path).parents else block

    with monkeypatch.context() as patched:
        patched.setattr(staging, "_read_blocks", corrupt)
        with pytest.raises(DataError, match=r"expected a copy of .*d.npz with .* bytes and SHA-256"):
            copy_of(files, "d.npz", target)

    def touch(path):
        yield from read_blocks(path)
        if target not in Path(path).parents:
            os.utime(path, ns=(1, 1))

    with monkeypatch.context() as patched:
        patched.setattr(staging, "_read_blocks", touch)
        with pytest.raises(DataError, match=r"changed while it was copied to data.stage_dir"):
            copy_of(files, "d.npz", target)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(read_blocks(str(files / "none")))
    assert list(target.iterdir()) == []
