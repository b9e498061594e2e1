"""CIFAR-10 and CIFAR-100: files and folders made with struct, every kind of damage, and random bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from damaged_bytes import damaged
from hypothesis import HealthCheck, given, settings

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.formats.cifar import CifarDataset
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.splits import open_datasets, open_inputs, open_test_set
from lepton_mpi.errors import DataError
from lepton_mpi.runtime.mpi import start_mpi

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 3, 32, 32)).astype(np.uint8)
LABELS = {"cifar10": np.arange(60) % 10, "cifar100": np.arange(60) * 7 % 100}


def records(name: str, start: int, stop: int) -> bytes:
    parts = []
    for i in range(start, stop):
        label = int(LABELS[name][i])
        head = struct.pack("B", label) if name == "cifar10" else struct.pack("BB", label // 5, label)
        parts.append(head + b"".join(struct.pack("1024B", *channel.reshape(-1).tolist()) for channel in IMAGES[i]))
    return b"".join(parts)


@pytest.fixture(params=["cifar10", "cifar100"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    name: str = request.param
    if name == "cifar10":
        (tmp_path / "data_batch_1.bin").write_bytes(records(name, 0, 30))
        (tmp_path / "data_batch_2.bin").write_bytes(records(name, 30, 50))
        (tmp_path / "test_batch.bin").write_bytes(records(name, 50, 60))
    else:
        (tmp_path / "train.bin").write_bytes(records(name, 0, 50))
        (tmp_path / "test.bin").write_bytes(records(name, 50, 60))
    (tmp_path / "batches.meta.txt").write_text("airplane\n")
    return name, tmp_path


def test_a_folder_holds_training_and_test_set(folder: tuple[str, Path]) -> None:
    name, path = folder
    for config in (
        DataConfig(format=name, path=str(path)),
        DataConfig(format=name, path=str(path), test_path=str(path)),
    ):
        splits = open_datasets(config, start_mpi())
        for dataset, rows in ((splits.train, slice(0, 50)), (splits.test, slice(50, 60))):
            order = np.random.default_rng(1).permutation(dataset.num_samples)
            x, y = dataset.read_raw(order), dataset.read_labels(order)
            assert x.dtype == np.uint8 and y.dtype == np.int64 and dataset.num_classes == (10 if name == "cifar10" else 100)
            np.testing.assert_array_equal(x, IMAGES[rows][order])
            np.testing.assert_array_equal(y, LABELS[name][rows][order])
        assert open_test_set(config).num_samples == 10
    assert splits.train.read_raw(np.empty(0, np.int64)).shape == (0, 3, 32, 32)
    assert open_inputs(str(path), "", DataConfig()).num_samples == 50


def test_one_file_and_other_labels(folder: tuple[str, Path]) -> None:
    name, path = folder
    file = next(iter(sorted(path.glob("*.bin"))))
    splits = open_datasets(DataConfig(format=name, path=str(file)), start_mpi(), DataNeeds("value"))
    assert splits.train.label_kind == "value" and splits.test.num_samples > 0
    none = CifarDataset(name, str(file), label_kind="none")
    assert none.read_labels(np.arange(2)).tolist() == [-1, -1]


def test_damage_is_named(folder: tuple[str, Path]) -> None:
    name, path = folder
    size = 3073 if name == "cifar10" else 3074
    file = path / "x.bin"
    for content, message in (
        (b"", "found an empty file"),
        (records(name, 0, 3)[:-1], rf"offset {2 * size}: expected {name} records of {size} bytes, found {size - 1} bytes after 2"),
        (b"\x89HDF\r\n\x1a\n", "offset 0: .* the file looks like hdf5"),
        (
            records(name, 0, 2) + b"\xff" * (size - 1) + b"\0",
            rf"offset {2 * size + size - 3073}: expected an integer label .* '255'",
        ),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            CifarDataset(name, str(file))
        assert str(file) in str(caught.value)
    (path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected files .*\.bin of cifar.* found none"):
        CifarDataset(name, str(path / "empty"))
    with pytest.raises(DataError, match=r"5 classes\), found '[5-9]"):
        open_datasets(DataConfig(format=name, path=str(path), num_classes=5), start_mpi())


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=2000)
@given(content=damaged(records("cifar10", 0, 2), records("cifar100", 0, 2)))
def test_any_bytes_are_data_or_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    for name in ("cifar10", "cifar100"):
        try:
            dataset = CifarDataset(name, str(path))
        except DataError:
            continue
        x, y = dataset.read(np.arange(dataset.num_samples))
        assert x.shape == (len(y), 3, 32, 32) and (y < dataset.num_classes).all()
