"""Conversion and staging on several ranks: the same bytes as on one, work that is shared, and errors that all ranks hear of."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.dataset import ArrayDataset, Dataset
from lepton_mpi.data.formats.tokens import TokenWindows
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.splits import open_datasets
from lepton_mpi.data.storage.conversion import Source, convert
from lepton_mpi.data.storage.packed import verify_packed
from lepton_mpi.data.storage.packed_hdf5 import verify_hdf5
from lepton_mpi.data.storage.spool import spooled
from lepton_mpi.data.storage.staging import stage
from lepton_mpi.errors import ConfigError, DataError, LeptonError
from lepton_mpi.runtime.mpi import MPI

RANDOM = np.random.default_rng(8)
DATASETS = {
    "rows": ArrayDataset("rows", RANDOM.standard_normal((70_001, 40)), np.arange(70_001) % 7, 7),
    "images": ArrayDataset("images", RANDOM.integers(0, 99, (37, 300, 1000)).astype(np.int16), None, 0),
    "one": ArrayDataset("one", RANDOM.integers(0, 99, (1, 3)), np.ones((1, 2), np.float32), 0),
    "text": TokenWindows("text", RANDOM.integers(0, 300, 9_000_001).astype("<u2"), 64, 300),
}


def read_bytes(path: Path) -> list[tuple[str, bytes]]:
    if path.is_file():
        return [("", path.read_bytes())]
    return [(file.name, file.read_bytes()) for file in sorted(path.iterdir())]


def verify(path: Path, comm: MPI.Intracomm) -> None:
    (verify_hdf5 if path.suffix else verify_packed)(os.fspath(path), comm)


@pytest.mark.mpi
@pytest.mark.parametrize("suffix", ["", ".h5"])
@pytest.mark.parametrize("name", DATASETS)
def test_the_bytes_do_not_depend_on_the_ranks(comm: MPI.Intracomm, folder: Path, name: str, suffix: str) -> None:
    dataset, together, alone = DATASETS[name], folder / f"together{suffix}", folder / f"alone{suffix}"
    manifest = convert(dataset, Source("npy"), together, comm)
    if comm.Get_rank() == 0:
        convert(dataset, Source("npy"), alone, MPI.COMM_SELF)
        one, other = read_bytes(alone), read_bytes(together)
        assert [file for file, *_ in one] == [file for file, *_ in other]
        assert [file for (file, content), (_, found) in zip(one, other, strict=True) if content != found] == []
        assert sorted(os.listdir(folder)) == [alone.name, together.name]
    assert len(set(comm.allgather(manifest.to_json()))) == 1
    verify(together, comm)


class PartlyUnreadable(Dataset):
    """Fails in its last samples, which are those of the last rank; counts what this rank was asked for."""

    def __init__(self, bad: int) -> None:
        super().__init__("partly", 1000, (4,), 0)
        self.bad, self.num_read = bad, 0

    def read_raw(self, indices):
        self.num_read += len(indices)
        if self.bad in indices:
            raise DataError(f"sample {self.bad} is damaged")
        return np.zeros((len(indices), 4), np.int8)

    def read_labels(self, indices):
        raise AssertionError


@pytest.mark.mpi
def test_an_error_of_one_rank_ends_all_and_leaves_nothing(comm: MPI.Intracomm, folder: Path) -> None:
    for output in ("out", "out.h5"):
        with pytest.raises(DataError, match="sample 999 is damaged"):
            convert(PartlyUnreadable(999), Source("npy"), folder / output, comm)
        comm.Barrier()
        assert os.listdir(folder) == []
        comm.Barrier()
    with pytest.raises(ConfigError, match="there is something at"):
        convert(PartlyUnreadable(-1), Source("npy"), folder, comm)


@pytest.mark.mpi
def test_each_rank_reads_its_share(comm: MPI.Intracomm, folder: Path) -> None:
    dataset = PartlyUnreadable(-1)
    convert(dataset, Source("npy"), folder / "out", comm)
    assert sum(comm.allgather(dataset.num_read)) == 1000
    assert dataset.num_read <= 1000 // comm.Get_size() + 1


@pytest.mark.mpi
def test_damage_is_said_by_all_ranks(comm: MPI.Intracomm, folder: Path) -> None:
    output = folder / "out"
    convert(DATASETS["text"], Source("tokens"), output, comm)
    if comm.Get_rank() == 0:
        with (output / "inputs.npy").open("r+b") as file:
            file.seek((16 << 20) + 5)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    comm.Barrier()
    with pytest.raises(DataError, match=r"inputs.npy, offset 16777216"):
        verify_packed(os.fspath(output), comm)


@pytest.mark.mpi
def test_tables_are_spooled_once_for_all(comm: MPI.Intracomm, folder: Path) -> None:
    path = folder / "d.csv"
    if comm.Get_rank() == 0:
        path.write_text("a,b,label\n" + "".join(f"{n}.5,{n},{n % 3}\n" for n in range(500)))
    comm.Barrier()
    config = DataConfig(format="csv", path=os.fspath(path))
    with spooled(config, DataNeeds(), folder / "out", comm) as readable:
        assert len(set(comm.allgather(readable.path))) == 1
        assert open_datasets(readable, comm).train.num_samples == 400
        comm.Barrier()
    comm.Barrier()
    assert os.listdir(folder) == ["d.csv"]
    with pytest.raises(LeptonError, match="cannot write temporary files"), spooled(config, DataNeeds(), path / "out", comm):
        pass


@pytest.mark.mpi
def test_one_copy_a_node(comm: MPI.Intracomm, folder: Path) -> None:
    path, local = folder / "d.npz", folder / "local"
    if comm.Get_rank() == 0:
        np.savez(path, x=np.arange(40.0).reshape(20, 2), y=np.arange(20) % 2)
    comm.Barrier()
    config = DataConfig(format="npz", path=os.fspath(path), test_path=os.fspath(path), stage_dir=os.fspath(local))
    staged = stage(config, comm)
    assert staged.path == staged.test_path != config.path
    assert len(set(comm.allgather(staged.path))) == 1
    assert len(os.listdir(local)) == 1
    assert open_datasets(config, comm).train.num_samples == 20
    bad = DataConfig(format="npz", path=os.fspath(path), stage_dir=os.fspath(path / "x"))
    with pytest.raises(ConfigError, match=r"data.stage_dir"):
        open_datasets(bad, comm)
