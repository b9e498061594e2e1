"""The paths that operations take on a GPU, run on arrays that refuse what CuPy's do, against the paths on NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import strict_device
from op_cases import CASES, make_arrays

from lepton_mpi.errors import DataError
from lepton_mpi.ops.softmax_cross_entropy import softmax_cross_entropy


def flat(results: Any) -> list[Any]:
    return list(results) if isinstance(results, tuple) else [results]


@pytest.mark.parametrize("name", CASES)
def test_same_as_on_the_host(name: str, device: Any) -> None:
    function, arrays = CASES[name][0], make_arrays(name)
    given = [array.copy() for array in arrays]
    on_device = [device.asarray(array) for array in arrays]
    expected, received = flat(function(*arrays)), flat(function(*on_device))
    for one, other in zip(received, expected, strict=True):
        if not isinstance(other, np.ndarray):
            assert one == pytest.approx(other, rel=1e-5)
            continue
        assert isinstance(one, strict_device.ndarray), "the result has left the device"
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(device.asnumpy(one), other, rtol=1e-4, atol=1e-5)
    for array, before in zip((*arrays, *map(device.asnumpy, on_device)), given * 2, strict=True):
        np.testing.assert_array_equal(array, before)


def test_a_label_out_of_range_is_named(device: Any) -> None:
    logits, labels = device.zeros((2, 2, 3), dtype=np.float32), device.asarray([[0, 1], [2, 3]])
    with pytest.raises(DataError, match=r"label \[1, 1\]: .* received 3"):
        softmax_cross_entropy(logits, labels)


def test_the_stand_in_refuses_what_cupy_refuses(device: Any) -> None:
    x = device.zeros((2, 3))
    for mistake in (
        lambda: np.asarray(x),
        lambda: np.ascontiguousarray(x),
        lambda: np.concatenate([x, x]),
        lambda: np.add.at(x, 0, 1.0),
        lambda: x + np.zeros((2, 3)),
        lambda: np.zeros((2, 3)) + x,
        lambda: device.where(np.zeros((2, 3), bool), x, 0),
        lambda: x.sum(where=x > 0),
        lambda: x.__setitem__(slice(None), np.zeros(3)),
    ):
        with pytest.raises(TypeError):
            mistake()
    with pytest.raises(IndexError):
        x[np.array([0, 1])]
    assert isinstance(x.sum(), strict_device.ndarray)
