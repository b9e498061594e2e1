"""Codecs: byte equality with the NumPy reference, error bounds, special values, and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lepton_mpi import native
from lepton_mpi.compress.codec import CODECS, Bf16Codec, Codec, ExactCodec, Fp16Codec, Int4Codec, Int8Codec, Sign1Codec, make_codec
from lepton_mpi.compress.reference import REFERENCES
from lepton_mpi.errors import CodecError

BLOCK_CODECS = [codec for codec in CODECS if codec.block_values > 1]
SIZES = [0, 1, 2, 15, 16, 17, 1000, 4099] + [limit + step for limit in (32, 64, 96, 256, 512, 1024, 2048) for step in (-1, 0, 1)]
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
    return REFERENCES[codec.name].encode(x)


def reference_decode(codec: Codec, payload: np.ndarray, n: int) -> np.ndarray:
    return REFERENCES[codec.name].decode(payload, n)


def check_against_reference(codec: Codec, x: np.ndarray) -> None:
    payload = encode(codec, x)
    np.testing.assert_array_equal(payload, reference_encode(codec, x))
    np.testing.assert_array_equal(bits(decode(codec, payload, x.size)), bits(reference_decode(codec, payload, x.size)))


def bits(values: np.ndarray) -> np.ndarray:
    """Return the bits of float32 values; those of NaN, whose sign and payload arithmetic leaves open, as one pattern."""
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)


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
@settings(max_examples=100, deadline=None)
@given(x=any_floats)
def test_same_bytes_as_reference_on_any_floats(codec, x):
    check_against_reference(codec, x)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("special", SPECIALS + NONFINITE)
def test_same_bytes_as_reference_with_a_special_value(codec, special):
    for position in (0, 31, 100, 255, 256, 300):
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


@settings(max_examples=100, deadline=None)
@given(x=finite_floats)
def test_bf16_error_is_at_most_half_a_unit(x):
    values = decode(Bf16Codec(), encode(Bf16Codec(), x), x.size).astype(np.float64)
    bound = np.maximum(np.abs(x.astype(np.float64)) * 2.0**-8, 2.0**-134)  # half the spacing of subnormal bfloat16
    inside = np.isfinite(values)
    assert np.all(np.abs(values - x)[inside] <= bound[inside])
    assert np.all(np.abs(x[~inside]) >= 255.5 / 256 * 2.0**128)  # only what lies nearer to the next power of two overflows


def test_fp16_rounds_to_nearest_even_and_keeps_special_values():
    bits_ = np.array([0x3F801000, 0x3F803000, 0x3F801001, 0x477FEFFF, 0x477FF000, 0x7F7FFFFF, 0xFF800000, 0x7F800001, 0xFFFFFFFF])
    expected = np.array([0x3C00, 0x3C02, 0x3C01, 0x7BFF, 0x7C00, 0x7C00, 0xFC00, 0x7E00, 0xFFFF])
    payload = encode(Fp16Codec(), bits_.astype(np.uint32).view(np.float32))
    np.testing.assert_array_equal(payload.view(np.uint16), expected)
    tiny = np.ldexp(np.array([1, 0.5, 0.50001, 1.5, -3, 1023, 1023.5], np.float32), -24)
    np.testing.assert_array_equal(encode(Fp16Codec(), tiny).view(np.uint16), [1, 0, 1, 2, 0x8003, 0x3FF, 0x400])


def test_fp16_decodes_every_code():
    codes = np.arange(2**16, dtype=np.uint16)
    values = decode(Fp16Codec(), codes.view(np.uint8), codes.size)
    np.testing.assert_array_equal(bits(values), bits(codes.view(np.float16).astype(np.float32)))


@settings(max_examples=100, deadline=None)
@given(x=arrays(np.float32, st.integers(1, 300), elements=st.floats(-65504, 65504, width=32)))
def test_fp16_error_is_at_most_half_a_unit(x):
    values = decode(Fp16Codec(), encode(Fp16Codec(), x), x.size).astype(np.float64)
    assert np.all(np.abs(values - x) <= np.maximum(np.abs(x.astype(np.float64)) * 2.0**-11, 2.0**-25))


@settings(max_examples=150, deadline=None)
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


@settings(max_examples=150, deadline=None)
@given(x=arrays(np.float32, st.integers(1, 200), elements=st.floats(-(2.0**126), 2.0**126, width=32)))
def test_int4_error_is_at_most_half_a_code(x):
    values = decode(Int4Codec(), encode(Int4Codec(), x), x.size).astype(np.float64)
    for start in range(0, x.size, 64):
        block = x[start : start + 64].astype(np.float64)
        error = np.abs(values[start : start + 64] - block)
        unrounded = np.abs(block).max() / 7
        assert np.all(error <= (7.01 * TINY if unrounded < TINY else (0.5 + 2.0**-19) * unrounded * (1 + 2.0**-7)))


def test_int4_codes_lie_within_7():
    for seed in range(50):
        payload = encode(Int4Codec(), mixed_scales(64 * 20, seed))[2 * 20 :]
        for nibbles in (payload & 15, payload >> 4):
            assert 8 not in nibbles
        assert np.isin(payload >> 4, [7, 9]).any()


def test_int4_scale_is_the_next_bfloat16():
    x = np.full(64, 7 * 1.0, np.float32)
    assert encode(Int4Codec(), x)[:2].view(np.uint16) == 0x3F80
    assert encode(Int4Codec(), np.nextafter(x, np.float32(8)))[:2].view(np.uint16) == 0x3F81


def test_int4_order_of_values_in_a_block():
    x = np.zeros(64 + 40, np.float32)
    x[[0, 33, 64, 64 + 31, 64 + 39]] = [7, -7, 7, 3, -1]
    codes = encode(Int4Codec(), x)[4:]
    expected = np.zeros(64, np.uint8)
    expected[[0, 1, 32, 63, 32 + 7]] = [0x07, 0x90, 0x07, 0x03, 0xF0]
    np.testing.assert_array_equal(codes, expected)


@settings(max_examples=100, deadline=None)
@given(x=arrays(np.float32, st.integers(1, 3000), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_sign1_sends_signs_and_the_mean_magnitude(x):
    values = decode(Sign1Codec(), encode(Sign1Codec(), x), x.size)
    for start in range(0, x.size, 1024):
        block, received = x[start : start + 1024], values[start : start + 1024]
        mean = np.abs(block.astype(np.float64)).mean()
        if mean < 2 * TINY:
            assert np.all(np.abs(received) <= 2 * TINY)
            continue
        np.testing.assert_allclose(np.abs(received), mean, rtol=2.0**-20)
        np.testing.assert_array_equal(np.signbit(received), np.signbit(block))


def test_sign1_sum_that_overflows_is_a_block_of_nan():
    x = np.full(1024 + 7, 1e36, np.float32)
    values = decode(Sign1Codec(), encode(Sign1Codec(), x), x.size)
    assert np.isnan(values[:1024]).all()
    np.testing.assert_allclose(values[1024:], 1e36, rtol=1e-6)


def test_int8_codes_lie_within_127_and_hit_it():
    for seed in range(50):
        x = mixed_scales(256 * 20, seed)
        payload = encode(Int8Codec(), x)
        codes = payload[4 * 20 :].view(np.int8).reshape(20, 256).astype(int)
        np.testing.assert_array_equal(np.abs(codes).max(axis=1), 127)


@pytest.mark.parametrize("codec", BLOCK_CODECS, ids=lambda codec: codec.name)
def test_block_of_zeros_or_subnormal_scale_decodes_to_zeros(codec):
    for value in (0.0, -0.0, 1e-45, -1e-45, 0.99 * TINY, -0.99 * TINY):
        x = np.full(1300, value, np.float32)
        payload = encode(codec, x)
        assert not payload.any()
        np.testing.assert_array_equal(decode(codec, payload, x.size).view(np.uint32), 0)


@pytest.mark.parametrize("codec, smallest", [(Int8Codec(), 127 * TINY), (Int4Codec(), 7 * TINY), (Sign1Codec(), TINY)])
def test_smallest_scale_that_is_sent(codec, smallest):
    for value in (smallest, -smallest):
        x = np.full(1300, value, np.float32)
        np.testing.assert_array_equal(decode(codec, encode(codec, x), x.size), x)
        np.testing.assert_array_equal(decode(codec, encode(codec, x * np.float32(0.999)), x.size), 0)


def test_int8_largest_value_rounds_to_infinity():
    x = np.array([LARGEST, -LARGEST, 1.0], np.float32)
    np.testing.assert_array_equal(decode(Int8Codec(), encode(Int8Codec(), x), 3), [np.inf, -np.inf, 0.0])


@pytest.mark.parametrize("codec", BLOCK_CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("special", NONFINITE)
def test_nonfinite_value_spoils_its_block_alone(codec, special):
    block = codec.block_values
    x = mixed_scales(4 * block - 3)
    for position in (block, 2 * block - 1, 3 * block):  # the first and last of a block, and in a short block
        spoiled = x.copy()
        spoiled[position] = special
        values = decode(codec, encode(codec, spoiled), x.size)
        np.testing.assert_array_equal(np.isnan(values), np.arange(x.size) // block == position // block)


@pytest.mark.parametrize("codec", [ExactCodec(), Bf16Codec(), *BLOCK_CODECS], ids=lambda codec: codec.name)
def test_scaling_by_a_power_of_two_is_exact(codec):
    x = np.random.default_rng(3).standard_normal(3000).astype(np.float32)
    values = decode(codec, encode(codec, x), x.size)
    scaled = np.ldexp(x, -60).astype(np.float32)
    np.testing.assert_array_equal(decode(codec, encode(codec, scaled), x.size), np.ldexp(values, -60))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_cut_at_blocks_gives_the_same_values(codec):
    x = mixed_scales(3000)
    whole = decode(codec, encode(codec, x), x.size)
    pieces = [x[start : start + 1024] for start in range(0, x.size, 1024)]
    np.testing.assert_array_equal(np.concatenate([decode(codec, encode(codec, piece), piece.size) for piece in pieces]), whole)


def test_sizes_and_names():
    assert [codec.name for codec in CODECS] == ["exact", "bf16", "fp16", "int8", "int4", "sign1"]
    assert [codec.number for codec in CODECS] == [0, 1, 3, 2, 4, 5]
    assert [codec.block_values for codec in CODECS] == [1, 1, 1, 256, 64, 1024]
    assert [codec.encoded_nbytes(1027) for codec in CODECS] == [4108, 2054, 2054, 20 + 1027, 34 + 512 + 3, 8 + 129]
    assert [codec.encoded_nbytes(0) for codec in CODECS] == [0] * 6
    for codec in CODECS:
        assert type(make_codec(codec.name)) is type(codec)
        assert 1024 % codec.block_values == 0
        assert native.codec_has_stochastic(codec.number) == (codec.name in ("int8", "int4"))
        assert codec.encoded_nbytes(2**33) == 2**33 // 1024 * codec.encoded_nbytes(1024)


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
        lambda: native.codec_block_values(6),
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
