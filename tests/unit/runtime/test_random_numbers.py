"""Philox against the published test vectors, and streams that any cut leaves alike."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.runtime.random import philox, random_key, uniform

# Known answers of Philox4x32-10 from Random123's kat_vectors: counter (4 words), key (2 words), result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    lower, upper = counter[0] | counter[1] << 32, counter[2] | counter[3] << 32
    found = philox(key[0] | key[1] << 32, np.array([lower], np.uint64), np.array([upper], np.uint64))
    assert found.tolist() == [list(expected)]


def test_counters_and_streams_broadcast() -> None:
    found = philox(5, np.arange(3, dtype=np.uint64), np.arange(2, dtype=np.uint64)[:, None])
    assert found.shape == (2, 3, 4)
    assert np.array_equal(found[1, 2], philox(5, np.array(2, np.uint64), 1))


def test_any_cut_of_a_stream_has_the_same_numbers() -> None:
    whole = uniform(9, 0, 100)
    for start in (0, 1, 3, 4, 17):
        for count in (0, 1, 5, 40):
            assert uniform(9, start, count).tobytes() == whole[start : start + count].tobytes()
    assert ((whole >= 0) & (whole < 1)).all()
    assert whole.dtype == np.float32


def test_keys_depend_on_every_part() -> None:
    keys = {random_key(seed, *purpose) for seed in (0, 1) for purpose in (("a",), ("b",), ("a", 1), ("a", 2), ("a", "b"))}
    assert len(keys) == 10
    assert all(0 <= key < 2**64 for key in keys)
    assert random_key(3, "init", "w") == random_key(3, "init", "w")
