"""Conversion: every format in, both forms out, the same samples; and what happens when it cannot or must not go on."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.dataset import ArrayDataset, Dataset
from lepton_mpi.data.formats.hdf5 import Hdf5Dataset
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.splits import open_datasets, open_whole
from lepton_mpi.data.storage import conversion, packed_hdf5
from lepton_mpi.data.storage.conversion import Source, convert
from lepton_mpi.data.storage.drafts import Draft, remove_abandoned
from lepton_mpi.data.storage.packed import open_packed, verify_packed
from lepton_mpi.data.storage.packed_hdf5 import verify_hdf5
from lepton_mpi.data.storage.spool import spooled
from lepton_mpi.errors import ConfigError, DataError, LeptonError
from lepton_mpi.runtime.mpi import start_mpi

RANDOM = np.random.default_rng(5)
Y = np.arange(30) % 3
X = RANDOM.integers(0, 200, (30, 2, 2)).astype(np.uint8)
NEEDS = DataNeeds("class", 8)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "x.idx").write_bytes(bytes([0, 0, 8, 3]) + np.array(X.shape, ">u4").tobytes() + X.tobytes())
    (tmp_path / "y.idx").write_bytes(bytes([0, 0, 8, 1]) + np.array(Y.shape, ">u4").tobytes() + Y.astype(np.uint8).tobytes())
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    rows = [",".join(map(str, [*row, label])) for row, label in zip(X.reshape(30, 4) / 7, Y, strict=True)]
    (tmp_path / "d.csv").write_text("a,b,c,d,label\n" + "\n".join(rows) + "\n")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["x"], file["y"] = X, Y
    RANDOM.integers(0, 500, 300).astype("<u2").tofile(tmp_path / "t.bin")
    (tmp_path / "t.txt").write_text("to be or not to be " * 30)
    write_records(tmp_path)
    return tmp_path


def write_records(folder: Path) -> None:
    """Write small data of the formats that need no further package."""
    ratings = [f"{n % 7 + 1},{n % 5 + 1},{n % 4 + 1},{n}" for n in range(30)]
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(ratings) + "\n")
    pictures = RANDOM.integers(0, 256, (30, 3073)).astype(np.uint8)
    pictures[:, 0] = Y
    pictures.tofile(folder / "data_batch_1.bin")
    with tarfile.open(folder / "d.tar", "w") as tar:
        for n in range(30):
            array = io.BytesIO()
            np.save(array, X[n])
            for suffix, content in (("npy", array.getvalue()), ("cls", str(Y[n]).encode())):
                info = tarfile.TarInfo(f"{n:04}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


FORMATS = {
    "digits": {},
    "idx": {"path": "x.idx", "labels_path": "y.idx"},
    "npy": {"path": "x.npy", "labels_path": "y.npy"},
    "npz": {"path": "d.npz"},
    "csv": {"path": "d.csv"},
    "hdf5": {"path": "d.h5"},
    "tokens": {"path": "t.bin"},
    "text": {"path": "t.txt"},
    "movielens": {"path": "ratings.csv"},
    "cifar10": {"path": "data_batch_1.bin"},
    "webdataset": {"path": "d.tar"},
    "synthetic": {},
}


def config_for(files: Path, name: str, **more: object) -> DataConfig:
    return DataConfig(format=name, **{key: str(files / value) for key, value in FORMATS[name].items()}, **more)


def read_all(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    everything = np.arange(dataset.num_samples)
    return dataset.read_raw(everything), dataset.read_labels(everything)


def reopen(output: Path, kind: str = "class") -> Dataset:
    if output.suffix == ".h5":
        return Hdf5Dataset(str(output), "x", "y", labels_required=False, label_kind=kind)
    return open_packed(str(output), label_kind=kind, labels_required=False, context=NEEDS.context)


def assert_same(before: Dataset, after: Dataset) -> None:
    assert (before.num_samples, before.input_shape, before.label_shape) == (after.num_samples, after.input_shape, after.label_shape)
    for one, other in zip(read_all(before), read_all(after), strict=True):
        assert one.dtype.newbyteorder("=") == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("output", ["out", "out.h5"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_same_samples_from_every_format(files: Path, name: str, output: str) -> None:
    comm, config, target = start_mpi(), config_for(files, name), files / "new" / output
    before = open_whole(config, comm, NEEDS)
    with spooled(config, NEEDS, target, comm) as readable:
        convert(open_whole(readable, comm, NEEDS), Source(name), target, comm)
    assert os.listdir(target.parent) == [output]
    assert_same(before, reopen(target))
    manifest = (verify_hdf5 if target.suffix else verify_packed)(str(target), comm)
    assert (manifest.source_format, manifest.source_name, manifest.split) == (name, before.name, "all")


@pytest.mark.parametrize("output", ["out", "out.h5"])
@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("name", ["digits", "csv", "text"])
def test_the_parts_are_those_of_training(files: Path, name: str, part: str, output: str) -> None:
    config, comm = config_for(files, name, test_samples=0), start_mpi()
    before = getattr(open_datasets(config, comm, NEEDS), part)
    convert(before, Source(name, part), files / output, comm)
    assert_same(before, reopen(files / output))


def test_names_of_classes_are_kept(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for n in range(4):
            image.fromarray(np.full((5, 6, 3), 20 * n + number, np.uint8)).save(tmp_path / "pictures" / name / f"{n}.png")
    comm, config = start_mpi(), DataConfig(format="images", path=str(tmp_path / "pictures"), test_fraction=0.25)
    for split, dataset in (("all", open_whole(config, comm)), ("test", open_datasets(config, comm).test)):
        manifest = convert(dataset, Source("images", split), tmp_path / split, comm)
        assert manifest.class_names == ("cat", "dog") and manifest.num_classes == 2
        packed = open_packed(str(tmp_path / split))
        assert tuple(packed.class_names) == ("cat", "dog")
        assert_same(dataset, packed)


def test_a_parquet_table(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"a": np.arange(30) / 4, "b": np.arange(30), "label": Y}
    parquet.write_table(arrow.table(columns), tmp_path / "d.parquet")
    dataset = open_whole(DataConfig(format="parquet", path=str(tmp_path / "d.parquet")), start_mpi())
    convert(dataset, Source("parquet"), tmp_path / "out", start_mpi())
    assert_same(dataset, open_packed(str(tmp_path / "out")))


def test_a_packed_folder_trains_as_its_source(files: Path) -> None:
    comm = start_mpi()
    for name in ("npz", "text"):
        config = config_for(files, name, test_fraction=0.3)
        convert(open_whole(config, comm, NEEDS), Source(name), files / f"{name}-out", comm)
        before = open_datasets(config, comm, NEEDS)
        after = open_datasets(DataConfig(format="packed", path=str(files / f"{name}-out"), test_fraction=0.3), comm, NEEDS)
        assert_same(before.train, after.train)
        assert_same(before.test, after.test)


@pytest.mark.parametrize("kind", ["value", "none"])
def test_labels_of_other_kinds(files: Path, kind: str) -> None:
    comm = start_mpi()
    dataset = open_whole(config_for(files, "npz"), comm, DataNeeds(kind))
    for output in ("out", "out.h5"):
        assert convert(dataset, Source("npz"), files / output, comm).label_kind == kind
        assert_same(dataset, reopen(files / output, kind))


def test_hdf5_has_chunks_of_rows_of_a_mebibyte(tmp_path: Path) -> None:
    x = RANDOM.integers(0, 9, (5000, 500)).astype(np.int32)
    large = RANDOM.integers(0, 9, (3, 1500, 1000)).astype(np.uint8)
    for name, array in (("a.h5", x), ("b.h5", large)):
        convert(ArrayDataset("made", array, None, 0), Source("npy"), tmp_path / name, start_mpi())
        with h5py.File(tmp_path / name) as file:
            assert file["x"].chunks == ((524, 500) if array is x else (1, 1500, 1000))
            np.testing.assert_array_equal(file["x"][:], array)


def test_damaged_hdf5_is_found(tmp_path: Path) -> None:
    path, comm = tmp_path / "out.h5", start_mpi()
    with pytest.raises(DataError, match="expected a readable data file"):
        verify_hdf5(str(path), comm)
    x = np.arange(3_000_000, dtype=np.int64).reshape(-1, 3)
    convert(ArrayDataset("made", x, None, 0), Source("npy"), path, comm)
    whole = path.read_bytes()
    place = whole.index(x[900_000].tobytes())
    path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
    with pytest.raises(DataError, match=r"out.h5, dataset 'x', offset 16777216: expected bytes 16777216 .. 23999999 with SHA-256"):
        verify_hdf5(str(path), comm)
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match="expected an HDF5 file"):
        verify_hdf5(str(path), comm)
    with h5py.File(path, "w") as file:
        file["x"] = x
    with pytest.raises(DataError, match="expected a file that convert made, found no 'manifest'"):
        verify_hdf5(str(path), comm)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        del file["x"]
    with pytest.raises(DataError, match=r"expected a dataset 'x' of shape \(1000000, 3\) and type <i8, .* found None"):
        verify_hdf5(str(path), comm)


def test_unreadable_rows_of_hdf5_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.h5"
    convert(ArrayDataset("made", X, None, 0), Source("npy"), path, start_mpi())

    @contextlib.contextmanager
    def read_dataset(*_: object):
        def fail(start: int, stop: int) -> bytes:
            raise OSError("filter not found")

        yield fail

    monkeypatch.setattr(packed_hdf5, "read_dataset", read_dataset)
    with pytest.raises(DataError, match="dataset 'x', offset 0: cannot be read: filter not found"):
        verify_hdf5(str(path), start_mpi())


class Refusing(Dataset):
    """Cannot be read from a sample on."""

    def __init__(self, error: Exception) -> None:
        super().__init__("refusing", 3_000_000, (8,), 0)
        self.error = error

    def read_raw(self, indices):
        if len(indices) and indices[-1] > 2_000_000:
            raise self.error
        return np.zeros((len(indices), 8), np.uint8)

    def read_labels(self, indices):
        return np.full(len(indices), -1)


@pytest.mark.parametrize("output", ["out", "out.h5"])
def test_nothing_stays_of_a_conversion_that_failed(tmp_path: Path, output: str) -> None:
    for error, found in ((DataError("damaged"), DataError), (OSError(errno.EIO, "no disk"), LeptonError)):
        with pytest.raises(found, match=r"damaged|no disk"):
            convert(Refusing(error), Source("npy"), tmp_path / output, start_mpi())
        assert os.listdir(tmp_path) == []


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comm, made = start_mpi(), ArrayDataset("made", X, Y, 3)
    (tmp_path / "taken").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("taken", "link"):
        with pytest.raises(ConfigError, match="--output: there is something at"):
            convert(made, Source("npy"), tmp_path / name, comm)
    with pytest.raises(DataError, match="made: expected samples to convert, found none"):
        convert(ArrayDataset("made", X[:0], Y[:0], 3), Source("npy"), tmp_path / "out", comm)
    with pytest.raises(DataError, match=r"made, sample 2: expected a label of 0 .. 1, found 2"):
        convert(ArrayDataset("made", X, Y, 2), Source("npy"), tmp_path / "out", comm)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output: cannot write .*: Not a directory|File exists"):
        convert(made, Source("npy"), tmp_path / "file" / "out", comm)
    monkeypatch.setattr(conversion, "free_nbytes", lambda _: 10)
    with pytest.raises(LeptonError, match="needs 150 bytes free, found 10: make room"):
        convert(made, Source("npy"), tmp_path / "out", comm)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from lepton_mpi.data.storage.conversion import Source, convert
from lepton_mpi.data.dataset import ArrayDataset, Dataset
from lepton_mpi.runtime.mpi import start_mpi

class Deadly(Dataset):
    def read_raw(self, indices):
        if len(indices) and indices[-1] > 2_000_000:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.ones((len(indices), 8), np.uint8)
    def read_labels(self, indices):
        raise AssertionError

convert(Deadly("deadly", 3_000_000, (8,), 0), Source("npy"), Path(sys.argv[1]), start_mpi())
"""


@pytest.mark.parametrize("output", ["out", "out.h5"])
def test_a_killed_conversion_leaves_nothing_that_looks_whole(tmp_path: Path, output: str) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    (tmp_path / "here").mkdir()
    target = tmp_path / "here" / output
    done = subprocess.run([sys.executable, script, target], stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    (left,) = target.parent.iterdir()
    assert left.name.startswith(f".{output}.") and left.name.endswith(".tmp") and not (left / "manifest.json").exists()
    if output == "out":
        with pytest.raises(DataError, match=r"expected a folder with a manifest.json"):
            open_packed(str(left))
    with Draft(target.with_name("other")).path.joinpath("growing").open("w"):  # of another conversion, which goes on
        pass
    convert(ArrayDataset("made", X, Y, 3), Source("npy"), target, start_mpi())
    assert target.exists() and not left.exists()


def test_drafts_in_use_stay(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "out")
    assert remove_abandoned(tmp_path) == [] and remove_abandoned(tmp_path / "missing") == []
    for name in (".other.tmp", ".out.0123456789abcdeg0.tmp", ".out.0123456789abcdef.txt"):
        (tmp_path / name).mkdir()
    (tmp_path / ".out.0123456789abcdef.tmp").mkdir()
    (tmp_path / ".out.0123456789abcdee.tmp").write_text("no folder")
    assert remove_abandoned(tmp_path, "else") == []
    assert [path.name for path in remove_abandoned(tmp_path, "out")] == [".out.0123456789abcdef.tmp"]
    draft.close()
    assert not draft.path.exists()


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from lepton_mpi.data.storage.conversion import Source, convert
from lepton_mpi.data.formats.npy import open_npy
from lepton_mpi.data.formats.hdf5 import Hdf5Dataset
from lepton_mpi.data.storage.packed import open_packed
from lepton_mpi.runtime.mpi import start_mpi

comm, folder = start_mpi(), Path(sys.argv[1])
with open("/proc/self/status") as file:
    used = next(int(line.split()[1]) for line in file if line.startswith("VmData")) << 10
limit = used + (96 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    np.ones(128 << 20, np.uint8)
except MemoryError:
    source = open_npy(str(folder / "x.npy"))
    for name in ("out", "out.h5"):
        convert(source, Source("npy"), folder / name, comm)
    hdf5 = Hdf5Dataset(str(folder / "out.h5"), "x", "y", label_kind="none")
    for dataset in (open_packed(str(folder / "out"), label_kind="none"), hdf5):
        for seed in range(20):
            indices = np.random.default_rng(seed).integers(0, dataset.num_samples, 64)
            assert (dataset.read_raw(indices)[:, 0] == indices).all()
    print("in bounds")
"""


def test_data_larger_than_the_memory(tmp_path: Path) -> None:
    """Half a gigabyte goes through a process that may not have 96 MiB of its own."""
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.int32, (1 << 17, 1 << 10))
    x[:, 0] = np.arange(1 << 17)
    del x
    (tmp_path / "limited.py").write_text(LIMITED)
    done = subprocess.run(
        [sys.executable, tmp_path / "limited.py", tmp_path], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.stdout == "in bounds\n", done.stderr
