"""Stochastic rounding: bytes against NumPy, no bias, and independence of how a tensor is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lepton_mpi import native
from lepton_mpi.compress.codec import Int4Codec, Int8Codec, StochasticKey
from lepton_mpi.compress.reference import REFERENCES, Stochastic, encode_int4, encode_int8
from lepton_mpi.errors import CodecError

STOCHASTIC = {"int8": (Int8Codec(), encode_int8, 127), "int4": (Int4Codec(), encode_int4, 7)}
by_name = pytest.mark.parametrize("name", STOCHASTIC)
KEY = StochasticKey(seed=0x123456789ABCDEF0, step=77, rank=5, phase=1)


def encode(name: str, x: np.ndarray, key: StochasticKey = KEY, first_element: int = 0) -> np.ndarray:
    codec = STOCHASTIC[name][0]
    payload = np.full(codec.encoded_nbytes(x.size), 0xA5, np.uint8)
    codec.encode_stochastic(x, payload, key, first_element)
    return payload


def check_against_reference(name: str, x: np.ndarray, first_element: int) -> None:
    _, reference, max_code = STOCHASTIC[name]
    rounding = Stochastic(**KEY._asdict(), first_element=first_element, max_code=max_code)
    np.testing.assert_array_equal(encode(name, x, KEY, first_element), reference(x, rounding))


@by_name
@pytest.mark.parametrize("n", [0, 1, 3, 31, 63, 64, 65, 255, 256, 257, 1000, 5003])
def test_same_bytes_as_reference(name, n):
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    for first_element in (0, 256 * 1001, 2**34 - 512):  # the last one crosses 2^32 counters
        check_against_reference(name, x, first_element)


@by_name
@settings(max_examples=60, deadline=None)
@given(x=arrays(np.float32, st.integers(0, 300), elements=st.floats(width=32)))
def test_same_bytes_as_reference_on_any_floats(name, x):
    check_against_reference(name, x, 0)


@by_name
def test_mean_over_draws_is_the_value(name):
    x = np.random.default_rng(1).standard_normal(512).astype(np.float32)
    x[[0, 64]] = [5, -5]
    draws = 2000
    values = np.zeros(x.size)
    for step in range(draws):
        values += REFERENCES[name].decode(encode(name, x, KEY._replace(step=step)), x.size)
    scale = 5.2 / STOCHASTIC[name][2]
    error = values / draws - x
    # The deviation of one draw is at most half a code.
    assert np.abs(error).max() < 4.5 * 0.5 * scale / np.sqrt(draws)
    assert abs(error.mean()) < 4.5 * 0.5 * scale / np.sqrt(draws * x.size)
    assert np.abs(REFERENCES[name].decode(encode(name, x), x.size) - x).max() > 0.5 * scale  # one draw is coarser than nearest


@by_name
def test_values_on_the_grid_stay(name):
    max_code = STOCHASTIC[name][2]
    x = np.resize(np.arange(-max_code, max_code + 1), 1024).astype(np.float32)
    x[::64] = max_code  # every block has a scale of 1
    np.testing.assert_array_equal(REFERENCES[name].decode(encode(name, x), x.size), x)


@by_name
def test_draws_depend_on_all_of_the_key(name):
    x = np.random.default_rng(2).standard_normal(2048).astype(np.float32)
    payload = encode(name, x)
    np.testing.assert_array_equal(payload, encode(name, x))
    for change in ({"seed": 1}, {"seed": KEY.seed ^ 1 << 63}, {"step": 78}, {"rank": 6}, {"phase": 0}):
        assert not np.array_equal(payload, encode(name, x, KEY._replace(**change)))
    assert not np.array_equal(payload, encode(name, x, KEY, 2048))


@by_name
def test_cut_at_blocks_gives_the_same_values(name):
    x = np.random.default_rng(3).standard_normal(3000).astype(np.float32)
    whole = REFERENCES[name].decode(encode(name, x), x.size)
    for start in range(0, x.size, 1024):
        piece = x[start : start + 1024]
        values = REFERENCES[name].decode(encode(name, piece, KEY, start), piece.size)
        np.testing.assert_array_equal(values, whole[start : start + 1024])


@by_name
def test_keys_and_arrays_that_do_not_fit_are_refused(name):
    codec = STOCHASTIC[name][0]
    x = np.zeros(300, np.float32)
    payload = np.zeros(codec.encoded_nbytes(300), np.uint8)
    for key, message in [
        (KEY._replace(seed=-1), "seed"),
        (KEY._replace(step=2**32), "step"),
        (KEY._replace(rank=2**24), "rank"),
        (KEY._replace(phase=256), "phase"),
    ]:
        with pytest.raises(CodecError, match=f"{message} of a stochastic key"):
            codec.encode_stochastic(x, payload, key, 0)
    with pytest.raises(CodecError, match="multiple of the block"):
        codec.encode_stochastic(x, payload, KEY, 4)
    with pytest.raises(CodecError, match="bytes"):
        codec.encode_stochastic(x, payload[:-1], KEY, 0)
    payload.flags.writeable = False
    with pytest.raises(CodecError, match="read-only"):
        codec.encode_stochastic(x, payload, KEY, 0)


def test_native_refuses_codecs_without_stochastic_rounding():
    x = np.zeros(8, np.float32)
    for codec, nbytes in ((0, 32), (1, 16), (3, 16), (5, 5)):
        with pytest.raises(ValueError, match="no stochastic rounding"):
            native.codec_encode_stochastic(codec, x, np.zeros(nbytes, np.uint8), seed=1, step=2, rank=3, phase=0, first_element=0)
    with pytest.raises(ValueError, match="multiple of 4"):
        native.codec_encode_stochastic(2, x, np.zeros(12, np.uint8), seed=1, step=2, rank=3, phase=0, first_element=2)
