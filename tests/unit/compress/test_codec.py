"""Codecs: byte equality with the NumPy reference, error bounds, special values, and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lepton_mpi import native
from lepton_mpi.compress import reference
from lepton_mpi.compress.codec import Bf16Codec, Codec, ExactCodec, Int8Codec, make_codec
from lepton_mpi.errors import CodecError

CODECS = [ExactCodec(), Bf16Codec(), Int8Codec()]
SIZES = [0, 1, 2, 15, 16, 17, 255, 256, 257, 511, 512, 1000, 4099]
TINY = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)
SPECIALS = [0.0, -0.0, 1.0, -1.0, 127.0, 63.5, -0.5, TINY, -TINY, TINY / 2, 1e-45, 1e-38, LARGEST, -LARGEST, 1.5e-36, 1.4e-36]
NONFINITE = [np.inf, -np.inf, np.nan]

any_floats = arrays(np.float32, st.integers(0, 600), elements=st.floats(width=32))
finite_floats = arrays(np.float32, st.integers(1, 600), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def encode(codec: Codec, x: np.ndarray) -> np.ndarray:
    payload = np.full(codec.encoded_nbytes(x.size), 0xA5, np.uint8)
    codec.encode(x, payload)
    return payload


def decode(codec: Codec, payload: np.ndarray, n: int) -> np.ndarray:
    out = np.full(n, 99, np.float32)
    codec.decode(payload, out)
    return out


def reference_encode(codec: Codec, x: np.ndarray) -> np.ndarray:
    if codec.name == "exact":
        return x.view(np.uint8)
    return {"bf16": reference.encode_bf16, "int8": reference.encode_int8}[codec.name](x)


def reference_decode(codec: Codec, payload: np.ndarray, n: int) -> np.ndarray:
    if codec.name == "exact":
        return payload.view(np.float32)
    return reference.decode_bf16(payload) if codec.name == "bf16" else reference.decode_int8(payload, n)


def check_against_reference(codec: Codec, x: np.ndarray) -> None:
    payload = encode(codec, x)
    np.testing.assert_array_equal(payload, reference_encode(codec, x))
    values = decode(codec, payload, x.size)
    expected = reference_decode(codec, payload, x.size)
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))


def mixed_scales(n: int, seed: int = 0) -> np.ndarray:
    """Normal values whose magnitude changes by many orders from block to block."""
    rng = np.random.default_rng(seed)
    exponents = np.repeat(rng.integers(-30, 30, n // 256 + 1), 256)[:n]
    return (rng.standard_normal(n) * 10.0**exponents).astype(np.float32)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("n", SIZES)
def test_same_bytes_as_reference(codec, n):
    check_against_reference(codec, mixed_scales(n, seed=n))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@settings(max_examples=200, deadline=None)
@given(x=any_floats)
def test_same_bytes_as_reference_on_any_floats(codec, x):
    check_against_reference(codec, x)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("position", [0, 100, 255, 256, 300])
@pytest.mark.parametrize("special", SPECIALS + NONFINITE)
def test_same_bytes_as_reference_with_a_special_value(codec, position, special):
    for x in (mixed_scales(301), np.zeros(301, np.float32)):
        x[position] = special
        check_against_reference(codec, x)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_decode_adds_to_what_is_there(codec):
    x, start = mixed_scales(1000, 1), mixed_scales(1000, 2)
    payload = encode(codec, x)
    out = start.copy()
    codec.decode(payload, out, add=True)
    np.testing.assert_array_equal(out, start + reference_decode(codec, payload, x.size))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_unaligned_payload(codec, offset):
    x = mixed_scales(777)
    nbytes = codec.encoded_nbytes(x.size)
    memory = np.zeros(nbytes + 8, np.uint8)
    payload = memory[offset : offset + nbytes]
    codec.encode(x, payload)
    np.testing.assert_array_equal(payload, encode(codec, x))
    assert not memory[:offset].any()
    assert not memory[offset + nbytes :].any()
    np.testing.assert_array_equal(decode(codec, payload, x.size), decode(codec, payload.copy(), x.size))
    np.testing.assert_array_equal(decode(codec, payload, x.size), reference_decode(codec, payload.copy(), x.size))


def test_exact_returns_every_bit_pattern():
    bits = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32)
    codec = ExactCodec()
    np.testing.assert_array_equal(decode(codec, encode(codec, bits.view(np.float32)), bits.size).view(np.uint32), bits)


def test_bf16_rounds_to_nearest_even_and_keeps_special_values():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7F8000, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x80000000])
    expected = np.array([0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x8000])
    payload = encode(Bf16Codec(), bits.astype(np.uint32).view(np.float32))
    np.testing.assert_array_equal(payload.view(np.uint16), expected)


@settings(max_examples=200, deadline=None)
@given(x=finite_floats)
def test_bf16_error_is_at_most_half_a_unit(x):
    values = decode(Bf16Codec(), encode(Bf16Codec(), x), x.size).astype(np.float64)
    bound = np.maximum(np.abs(x.astype(np.float64)) * 2.0**-8, 2.0**-134)  # half the spacing of subnormal bfloat16
    inside = np.isfinite(values)
    assert np.all(np.abs(values - x)[inside] <= bound[inside])
    assert np.all(np.abs(x[~inside]) >= 255.5 / 256 * 2.0**128)  # only what lies nearer to the next power of two overflows


@settings(max_examples=300, deadline=None)
@given(x=arrays(np.float32, st.integers(1, 600), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_int8_error_is_at_most_half_a_code(x):
    payload = encode(Int8Codec(), x)
    values = decode(Int8Codec(), payload, x.size).astype(np.float64)
    for start in range(0, x.size, 256):
        block = x[start : start + 256].astype(np.float64)
        error = np.abs(values[start : start + 256] - block)
        scale = np.abs(block).max() / 127
        if scale < TINY:
            assert np.all(error <= 127.01 * TINY)
        else:
            assert np.all(error <= (0.5 + 2.0**-15) * scale)


def test_int8_codes_lie_within_127_and_hit_it():
    for seed in range(50):
        x = mixed_scales(256 * 20, seed)
        payload = encode(Int8Codec(), x)
        codes = payload[4 * 20 :].view(np.int8).reshape(20, 256).astype(int)
        np.testing.assert_array_equal(np.abs(codes).max(axis=1), 127)


def test_int8_block_of_zeros_or_subnormal_scale_decodes_to_zeros():
    for value in (0.0, -0.0, 1e-45, 1.4e-36):
        x = np.full(300, value, np.float32)
        payload = encode(Int8Codec(), x)
        assert not payload.any()
        np.testing.assert_array_equal(decode(Int8Codec(), payload, 300).view(np.uint32), 0)


def test_int8_largest_value_rounds_to_infinity():
    x = np.array([LARGEST, -LARGEST, 1.0], np.float32)
    np.testing.assert_array_equal(decode(Int8Codec(), encode(Int8Codec(), x), 3), [np.inf, -np.inf, 0.0])


@pytest.mark.parametrize("special", NONFINITE)
def test_int8_nonfinite_value_spoils_its_block_alone(special):
    x = mixed_scales(700)
    x[300] = special
    values = decode(Int8Codec(), encode(Int8Codec(), x), x.size)
    assert np.isnan(values[256:512]).all()
    assert np.isfinite(values[:256]).all()
    assert np.isfinite(values[512:]).all()


def test_int8_scaling_by_a_power_of_two_is_exact():
    x = np.random.default_rng(3).standard_normal(1000).astype(np.float32)
    values = decode(Int8Codec(), encode(Int8Codec(), x), x.size)
    scaled = np.ldexp(x, -60).astype(np.float32)
    np.testing.assert_array_equal(decode(Int8Codec(), encode(Int8Codec(), scaled), x.size), np.ldexp(values, -60))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_cut_at_blocks_gives_the_same_values(codec):
    x = mixed_scales(1000)
    whole = decode(codec, encode(codec, x), x.size)
    pieces = [x[start : start + 512] for start in range(0, x.size, 512)]
    np.testing.assert_array_equal(np.concatenate([decode(codec, encode(codec, piece), piece.size) for piece in pieces]), whole)


def test_sizes_and_names():
    assert [codec.block_values for codec in CODECS] == [1, 1, 256]
    assert [codec.encoded_nbytes(257) for codec in CODECS] == [1028, 514, 265]
    assert [codec.encoded_nbytes(0) for codec in CODECS] == [0, 0, 0]
    for codec in CODECS:
        assert type(make_codec(codec.name)) is type(codec)


def test_unknown_codec_is_refused():
    with pytest.raises(CodecError, match="'fp8'"):
        make_codec("fp8")


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_arrays_that_do_not_fit_are_refused(codec):
    x = np.zeros(300, np.float32)
    payload = np.zeros(codec.encoded_nbytes(300), np.uint8)
    unaligned = np.zeros(1201, np.uint8)[1:].view(np.float32)
    read_only = payload.copy()
    read_only.flags.writeable = False
    for values, bytes_, message in [
        (x.astype(np.float64), payload, "float32"),
        (x.reshape(30, 10), payload, "1 dim"),
        (np.zeros(600, np.float32)[::2], payload, "contiguous"),
        (unaligned, payload, "aligned"),
        (x, payload.view(np.int8), "uint8"),
        (x, payload[:-1], f"expected {payload.size} bytes, received {payload.size - 1}"),
        (x, np.zeros(2 * payload.size, np.uint8)[::2], "contiguous"),
    ]:
        with pytest.raises(CodecError, match=message):
            codec.encode(values, bytes_)
        with pytest.raises(CodecError, match=message):
            codec.decode(bytes_, values)
    with pytest.raises(CodecError, match="read-only"):
        codec.encode(x, read_only)
    x.flags.writeable = False
    with pytest.raises(CodecError, match="read-only"):
        codec.decode(payload, x)


def test_native_refuses_unknown_codecs_and_wrong_arrays():
    x, payload = np.zeros(10, np.float32), np.zeros(10, np.uint8)
    for call in (
        lambda: native.codec_block_values(3),
        lambda: native.codec_encoded_nbytes(-1, 10),
        lambda: native.codec_encode(7, x, payload),
        lambda: native.codec_decode(7, payload, x, False),
    ):
        with pytest.raises(ValueError, match="expected codec 0"):
            call()
    with pytest.raises(ValueError, match="expected 14 bytes, received 10"):
        native.codec_encode(2, x, payload)
    with pytest.raises(ValueError, match="expected 14 bytes, received 10"):
        native.codec_decode(2, payload, x, False)
    with pytest.raises(ValueError, match="expected 1 dim"):
        native.codec_encode(0, x.reshape(2, 5), np.zeros(40, np.uint8))
    with pytest.raises(ValueError, match="aligned"):
        native.codec_encode(0, np.zeros(41, np.uint8)[1:].view(np.float32), np.zeros(40, np.uint8))
    with pytest.raises(TypeError):
        native.codec_encode(0, x.astype(np.float64), np.zeros(40, np.uint8))
