"""Normalisation: against NumPy in float64, constants, bad values, storage."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.normalisation import Normalisation, measure_normalisation
from lepton_mpi.errors import CheckpointError, DataError
from lepton_mpi.runtime.mpi import start_mpi


def dataset_of(inputs: np.ndarray) -> ArrayDataset:
    return ArrayDataset("made", inputs, None, 0)


@pytest.mark.parametrize("num_samples", [1, 2, 4096, 4097, 10_000])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_measures_as_numpy_does(num_samples: int, offset: float) -> None:
    x = (np.random.default_rng(0).standard_normal((num_samples, 2, 3)) + offset).astype(np.float32)
    comm = start_mpi()
    exact = x.astype(np.float64)
    feature = measure_normalisation(dataset_of(x), "feature", comm)
    assert feature.mean.shape == feature.std.shape == (2, 3)
    np.testing.assert_allclose(feature.mean, exact.mean(axis=0), rtol=1e-6)
    if num_samples > 1:
        np.testing.assert_allclose(feature.std, exact.std(axis=0), rtol=1e-6)
    whole = measure_normalisation(dataset_of(x), "global", comm)
    assert whole.mean.shape == whole.std.shape == ()
    np.testing.assert_allclose(whole.mean, exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(whole.std, exact.std(), rtol=1e-6)


def test_wide_samples_are_measured_in_smaller_chunks() -> None:
    x = np.random.default_rng(0).random((7, 3_000_000), np.float32)
    found = measure_normalisation(dataset_of(x), "global", start_mpi())
    np.testing.assert_allclose(found.std, x.astype(np.float64).std(), rtol=1e-6)


def test_apply_gives_mean_0_and_std_1() -> None:
    x = np.random.default_rng(0).random((500, 4), np.float32) * 7 + 3
    normalisation = measure_normalisation(dataset_of(x), "feature", start_mpi())
    y = normalisation.apply(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-5)
    assert normalisation.apply(x, out=x) is x
    np.testing.assert_array_equal(x, y)


def test_constant_features_become_0() -> None:
    x = np.full((9000, 2), 0.1, np.float32)
    x[:, 1] = np.arange(9000)
    normalisation = measure_normalisation(dataset_of(x), "feature", start_mpi())
    assert normalisation.std[0] == 1
    assert (normalisation.apply(x)[:, 0] == 0).all()


def test_none_changes_nothing() -> None:
    x = np.array([[np.nan, 3.5]], np.float32)
    np.testing.assert_array_equal(measure_normalisation(dataset_of(x), "none", start_mpi()).apply(x), x)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_identity_changes_nothing(shape: tuple[int, ...]) -> None:
    x, identity = np.array([[np.nan, 3.5]], np.float32), Normalisation.identity(shape)
    np.testing.assert_array_equal(identity.apply(x), x)
    assert identity.to_arrays()["mean"].shape == identity.to_arrays()["std"].shape == shape


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["global", "feature"])
def test_bad_values_are_named(value: float, kind: str) -> None:
    x = np.zeros((5000, 3), np.float32)
    x[4500, 1] = value
    with pytest.raises(DataError, match="made, sample 4500: expected finite inputs"):
        measure_normalisation(dataset_of(x), kind, start_mpi())


def test_storage() -> None:
    before = Normalisation(np.array([1.5, 2]), np.array([0, 3.0]))
    after = Normalisation.from_arrays(before.to_arrays())
    np.testing.assert_array_equal(after.mean, [1.5, 2])
    np.testing.assert_array_equal(after.std, [1, 3])
    with pytest.raises(CheckpointError, match="missing std"):
        Normalisation.from_arrays({"mean": np.zeros(2)})
    with pytest.raises(CheckpointError, match="expected one shape"):
        Normalisation.from_arrays({"mean": np.zeros(2), "std": np.ones(3)})
