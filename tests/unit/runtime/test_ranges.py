"""Dividing ranges."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lepton_mpi.runtime.ranges import split_range


@given(st.integers(0, 50), st.integers(1, 9))
def test_split_range_is_array_split(length: int, parts: int) -> None:
    received = [split_range(length, parts, index) for index in range(parts)]
    for (start, stop), part in zip(received, np.array_split(np.arange(length), parts), strict=True):
        np.testing.assert_array_equal(np.arange(start, stop), part)
    assert received[0][0] == 0
    assert received[-1][1] == length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(received))
