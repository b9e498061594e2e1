"""The digest of checkpoints is zlib's number for every length and alignment, by both ways to it."""

from __future__ import annotations

import random
import zlib

import pytest

from lepton_mpi._crc32 import crc32, crc32_by_tables

BYTES = random.Random(0).randbytes(2**17 + 64)
BOTH = pytest.mark.parametrize("function", [crc32, crc32_by_tables])


@BOTH
def test_the_check_value_of_the_standard(function):
    assert function(b"123456789") == 0xCBF43926
    assert function(b"") == 0


@BOTH
def test_every_short_length_at_every_alignment(function):
    view = memoryview(BYTES)
    for start in range(17):
        for size in range(300):
            piece = view[start : start + size]
            assert function(piece) == zlib.crc32(piece)


@BOTH
@pytest.mark.parametrize("size", [4095, 4096, 4097, 2**16 + 15, 2**17])
@pytest.mark.parametrize("start", [0, 1, 7, 63])
def test_long_ones(function, size, start):
    piece = memoryview(BYTES)[start : start + size]
    assert function(piece) == zlib.crc32(piece)


@BOTH
def test_pieces_follow_each_other(function):
    random_cuts, found, position = random.Random(1), 0, 0
    while position < len(BYTES):
        size = random_cuts.choice([0, 1, 15, 16, 64, 100, 5000])
        found, position = function(BYTES[position : position + size], found), position + size
    assert found == zlib.crc32(BYTES)


@BOTH
def test_extreme_bytes(function):
    for data in (bytes(1000), b"\xff" * 1000):
        assert function(data) == zlib.crc32(data)
        assert function(data, 0xFFFFFFFF) == zlib.crc32(data, 0xFFFFFFFF)


@BOTH
def test_what_is_no_bytes_is_refused(function):
    with pytest.raises(TypeError):
        function("text")
