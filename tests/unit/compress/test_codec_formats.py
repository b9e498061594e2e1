"""What each codec sends: rounding, scales, order of the codes, error bounds."""

import numpy as np
from codec_cases import LARGEST, TINY, bits, decode, encode, mixed_scales
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lepton_mpi.compress.codec import Bf16Codec, Fp16Codec, Int4Codec, Int8Codec, Sign1Codec

finite_floats = arrays(np.float32, st.integers(1, 600), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


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


def test_int8_largest_value_rounds_to_infinity():
    x = np.array([LARGEST, -LARGEST, 1.0], np.float32)
    np.testing.assert_array_equal(decode(Int8Codec(), encode(Int8Codec(), x), 3), [np.inf, -np.inf, 0.0])
