"""Data on several ranks: equal normalisation bits, errors raised together, differing files found."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from lepton_mpi.config.augmentation import AugmentationSettings
from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.augmentation import Augmentation, ImageLayout
from lepton_mpi.data.dataset import ArrayDataset, Dataset, id_counts
from lepton_mpi.data.loader import BatchCut, Loader
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.normalisation import measure_normalisation
from lepton_mpi.data.sampler import Sampler
from lepton_mpi.data.splits import open_datasets
from lepton_mpi.errors import DataError, LeptonError, RankMismatchError
from lepton_mpi.runtime.mpi import MPI


class FailingDataset(Dataset):
    """Cannot be read beyond its first samples."""

    def __init__(self) -> None:
        super().__init__("failing", 20_000, (2,), 0)

    def read_raw(self, indices):
        if len(indices) and indices[-1] >= 9000:
            raise OSError("the disk is on fire")
        return np.zeros((len(indices), 2), np.float32)

    def read_labels(self, indices):
        return np.full(len(indices), -1)


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["global", "feature"])
@pytest.mark.parametrize("num_samples", [1, 5000, 30_001])
def test_normalisation_bits_do_not_depend_on_the_ranks(comm: MPI.Intracomm, kind: str, num_samples: int) -> None:
    x = (np.random.default_rng(3).standard_normal((num_samples, 6)) * 5 + 100).astype(np.float32)
    dataset = ArrayDataset("made", x, None, 0)
    alone = measure_normalisation(dataset, kind, MPI.COMM_SELF)
    together = measure_normalisation(dataset, kind, comm)
    assert alone.mean.tobytes() == together.mean.tobytes()
    assert alone.std.tobytes() == together.std.tobytes()
    assert len(set(comm.allgather(together.mean.tobytes() + together.std.tobytes()))) == 1


@pytest.mark.mpi
def test_unreadable_and_bad_samples_end_all_ranks(comm: MPI.Intracomm) -> None:
    with pytest.raises(LeptonError, match="the disk is on fire"):
        measure_normalisation(FailingDataset(), "global", comm)
    x = np.zeros((20_000, 2), np.float32)
    x[9000, 1] = np.nan
    with pytest.raises(DataError, match="made, sample 9000: expected finite"):
        measure_normalisation(ArrayDataset("made", x, None, 0), "feature", comm)


@pytest.mark.mpi
def test_batches_of_all_ranks_make_the_epoch(comm: MPI.Intracomm) -> None:
    config = DataConfig()
    train = open_datasets(config, comm).train
    normalisation = measure_normalisation(train, config.normalise, comm)

    def epoch_digest(index: int, size: int, gather) -> str:
        loader = Loader(
            train,
            Sampler(train.num_samples, 4),
            normalisation,
            global_batch=100,
            cut=BatchCut(index, size, 2),
            augmentation=Augmentation(AugmentationSettings(), 4, train.num_samples, 1, ImageLayout(8, 8, "none")),
        )
        digest, epoch, position = hashlib.sha256(), 1, 0
        for _ in range(loader.steps_per_epoch):
            batch = loader.batch(epoch, position)
            pieces = gather([*zip(batch.inputs, batch.labels, strict=True)])
            for x, y in (part[m] for m in range(2) for part in pieces):
                for sample, label in zip(x, y, strict=True):
                    digest.update(sample.tobytes() + label.tobytes())
            epoch, position = batch.following
        assert (epoch, position) == (2, 0)
        return digest.hexdigest()

    assert epoch_digest(comm.rank, comm.size, comm.allgather) == epoch_digest(0, 1, lambda part: [part])


@pytest.mark.mpi(min_size=2)
def test_a_file_missing_on_one_rank(comm: MPI.Intracomm, folder: Path) -> None:
    path = folder / f"rank{comm.rank}.csv"
    last = comm.rank == comm.size - 1
    if not last:
        path.write_text("a,label\n1,0\n2,1\n")
    with pytest.raises(DataError, match=f"rank {comm.size - 1}: .*No such file"):
        open_datasets(DataConfig(format="csv", path=os.fspath(path)), comm)


@pytest.mark.mpi(min_size=2)
def test_files_that_differ_between_ranks(comm: MPI.Intracomm, folder: Path) -> None:
    (folder / str(comm.rank)).mkdir()
    path = folder / str(comm.rank) / "d.csv"
    last = comm.rank == comm.size - 1
    path.write_text("a,label\n1,0\n2,1\n" + ("3,1\n" if last else "3,0\n"))
    with pytest.raises(RankMismatchError, match=f"but rank {comm.size - 1} opened d.csv"):
        open_datasets(DataConfig(format="csv", path=os.fspath(path)), comm)


@pytest.mark.mpi
@pytest.mark.parametrize("num_samples", [1, 2, 1000])
def test_the_largest_ids_of_all_ranks_count(comm: MPI.Intracomm, num_samples: int) -> None:
    ids = np.random.default_rng(7).integers(0, 10**9, (num_samples, 3))
    assert id_counts(ArrayDataset("pairs", ids, None, 0), comm) == tuple(ids.max(axis=0) + 1)
    ids[-1, 1] = -4  # seen by the last rank that has samples
    with pytest.raises(DataError, match=f"pairs, sample {num_samples - 1}: expected an integer from 0, found -4"):
        id_counts(ArrayDataset("pairs", ids, None, 0), comm)


@pytest.mark.mpi
def test_a_vocabulary_is_scanned_together(comm: MPI.Intracomm, folder: Path) -> None:
    path, tokens = folder / "tokens.bin", np.arange(1000) * 11 % 301
    if comm.rank == 0:
        tokens.astype("<u2").tofile(path)
    comm.Barrier()
    config = DataConfig(format="tokens", path=os.fspath(path))
    splits = open_datasets(config, comm, DataNeeds(context=8))
    assert (splits.train.num_classes, splits.train.num_samples, splits.test.num_samples) == (301, 100, 24)
    config = DataConfig(format="tokens", path=os.fspath(path), num_classes=300)
    with pytest.raises(DataError, match=rf"token {tokens.argmax()} \(byte .* 0 .. 299, found 300"):
        open_datasets(config, comm, DataNeeds(context=8))
