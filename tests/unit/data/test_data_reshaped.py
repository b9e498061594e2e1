"""Data sets in another shape."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.dataset import ArrayDataset, Reshaped
from lepton_mpi.data.splits import open_datasets, open_test_set
from lepton_mpi.errors import DataError
from lepton_mpi.runtime.mpi import start_mpi


def test_reshaped_samples_keep_their_values_and_labels() -> None:
    x = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    dataset = Reshaped(ArrayDataset("x", x, np.arange(4), 4), (2, 3))
    inputs, labels = dataset.read(np.array([2, 0, 2]))
    assert dataset.input_shape == (2, 3)
    assert (dataset.num_samples, dataset.num_classes) == (4, 4)
    assert np.array_equal(inputs, x[[2, 0, 2]].reshape(3, 2, 3))
    assert labels.tolist() == [2, 0, 2]
    assert dataset.read_inputs(np.empty(0, np.int64)).shape == (0, 2, 3)


def test_another_number_of_values_is_refused() -> None:
    with pytest.raises(DataError, match=r"expected samples of shape \(5,\), or flat ones of 5 values, found \(6,\)"):
        Reshaped(ArrayDataset("x", np.zeros((4, 6)), None, 0), (5,))


def test_the_test_set_alone_is_that_of_the_splits() -> None:
    alone, splits = open_test_set(DataConfig()), open_datasets(DataConfig(), start_mpi())
    everything = np.arange(alone.num_samples)
    assert alone.num_samples == splits.test.num_samples > 0
    assert np.array_equal(alone.read_inputs(everything), splits.test.read_inputs(everything))
