"""Parts of a training set: the validation set, the first samples, and what a folder or file is told to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.formats.tokens import TokenWindows
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.selection import choose_first
from lepton_mpi.data.splits import open_datasets, open_test_set
from lepton_mpi.data.validation import guess_format, list_folder
from lepton_mpi.errors import DataError
from lepton_mpi.runtime.mpi import start_mpi


def numbers_of(dataset) -> set[int]:
    return set(dataset.read_raw(np.arange(dataset.num_samples))[:, 0].tolist())


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Name 200 samples that hold their own number, of classes of 100, 60 and 40."""
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    np.savez(tmp_path / "d.npz", x=np.arange(200)[:, None], y=np.random.default_rng(0).permutation(labels))
    return DataConfig(format="npz", path=str(tmp_path / "d.npz"), test_fraction=0.25)


def test_training_is_judged_on_the_validation_set(config: DataConfig) -> None:
    plain = open_datasets(config, start_mpi())
    judged = DataConfig(format="npz", path=config.path, test_fraction=0.25, validation_fraction=0.2)
    splits, test = open_datasets(judged, start_mpi()), open_test_set(judged)
    assert (splits.train.num_samples, splits.test.num_samples, test.num_samples) == (120, 30, 50)
    assert numbers_of(test) == numbers_of(plain.test)
    assert numbers_of(splits.train) | numbers_of(splits.test) == numbers_of(plain.train)
    assert np.bincount(splits.test.read_labels(np.arange(30))).tolist() == [15, 9, 6]
    assert (splits.train.name, splits.test.name) == ("d.npz (training)", "d.npz (validation)")


def test_validation_beside_a_test_file(config: DataConfig) -> None:
    judged = DataConfig(format="npz", path=config.path, test_path=config.path, validation_fraction=0.1)
    splits = open_datasets(judged, start_mpi())
    assert (splits.train.num_samples, splits.test.num_samples, open_test_set(judged).num_samples) == (180, 20, 200)


@pytest.mark.parametrize("first_n", [1, 3, 50, 149, 150, 1000])
def test_the_first_samples_keep_the_classes_in_proportion(config: DataConfig, first_n: int) -> None:
    few = DataConfig(format="npz", path=config.path, test_fraction=0.25, first_n=first_n)
    splits, plain = open_datasets(few, start_mpi()), open_datasets(config, start_mpi())
    assert splits.train.num_samples == min(first_n, 150) and splits.train.num_classes == 3
    assert numbers_of(splits.train) <= numbers_of(plain.train) and numbers_of(splits.test) == numbers_of(plain.test)
    if first_n == 50:
        counts = np.bincount(splits.train.read_labels(np.arange(50)))
        assert np.abs(counts - [25, 15, 10]).max() <= 1


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=80).map(np.array), share=st.floats(0, 1))
def test_the_first_of_each_class(labels: np.ndarray, share: float) -> None:
    count = max(1, int(len(labels) * share))
    chosen = choose_first(labels, count)
    assert len(chosen) == count and (np.diff(chosen) > 0).all()
    classes, sizes = np.unique(labels, return_counts=True)
    spare, rest = count - min(count, len(classes)), len(labels) - len(classes)
    for value, size in zip(classes, sizes, strict=True):
        mine = chosen[labels[chosen] == value]
        np.testing.assert_array_equal(mine, np.flatnonzero(labels == value)[: len(mine)])
        if count >= len(classes):
            assert abs(len(mine) - 1 - (size - 1) * spare / max(rest, 1)) < 1 + 1e-9


def test_parts_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(bytes(i % 251 for i in range(1001)))  # 100 windows of 10
    config = DataConfig(format="text", path=str(tmp_path / "t.txt"), test_fraction=0.2, validation_fraction=0.25, first_n=7)
    splits = open_datasets(config, start_mpi(), DataNeeds(context=10))
    assert isinstance(splits.train, TokenWindows) and isinstance(splits.test, TokenWindows)
    assert (splits.train.num_samples, splits.test.num_samples) == (7, 20)
    assert splits.train.read_ids(np.arange(7)).reshape(-1).tolist() == list(range(70))
    assert splits.train.read_labels(np.array([6])).tolist() == [list(range(61, 71))]
    assert splits.test.read_ids(np.zeros(1, np.int64))[0, 0] == 600 % 251
    test = open_test_set(config, DataNeeds(context=10))
    assert test.num_samples == 20 and test.read_ids(np.zeros(1, np.int64))[0, 0] == 800 % 251


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["data_batch_1.bin", "test_batch.bin"], "cifar10"),
        (["train.bin", "test.bin"], "cifar100"),
        (["test.bin"], None),
        (["a.tar", "b.tar"], "webdataset"),
        (["ratings.csv", "movies.csv"], "movielens"),
        (["u.data"], "movielens"),
        ([], None),
    ],
)
def test_folders_are_told_by_their_names(tmp_path: Path, names: list[str], expected: str | None) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert guess_format(str(tmp_path)) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x", b"PAR1....", "parquet"),
        ("x.parquet", b"damaged", "parquet"),
        ("x", bytes(257) + b"ustar\0" + bytes(249), "webdataset"),
        ("x.tar", b"damaged", "webdataset"),
        ("ratings.csv", b"userId,movieId,rating,timestamp\n1,2,3,4\n", "movielens"),
        ("ratings.csv", b"a,b\n", "csv"),
        ("other.csv", b"userId,movieId,rating,timestamp\n1,2,3,4\n", "csv"),
        ("ratings.dat", b"1::2::3::4", "movielens"),
        ("x.dat", b"1::2::3::4", None),
    ],
)
def test_files_are_told_by_their_first_bytes_or_names(tmp_path: Path, name: str, content: bytes, expected: str | None) -> None:
    (tmp_path / name).write_bytes(content)
    assert guess_format(str(tmp_path / name)) == expected


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: .*No such file"):
        list_folder(str(tmp_path / "none"))
