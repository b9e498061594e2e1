"""Codecs: byte equality with the NumPy reference, special values, and refusals."""

import numpy as np
import pytest
from codec_cases import LARGEST, NONFINITE, TINY, bits, decode, encode, mixed_scales, reference_decode, reference_encode
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lepton_mpi import native
from lepton_mpi.compress.codec import CODECS, Bf16Codec, Codec, ExactCodec, Int4Codec, Int8Codec, Sign1Codec, make_codec
from lepton_mpi.errors import CodecError

BLOCK_CODECS = [codec for codec in CODECS if codec.block_values > 1]
SIZES = [0, 1, 2, 15, 16, 17, 1000, 4099] + [limit + step for limit in (32, 64, 96, 256, 512, 1024, 2048) for step in (-1, 0, 1)]
SPECIALS = [0.0, -0.0, 1.0, -1.0, 127.0, 63.5, -0.5, TINY, -TINY, TINY / 2, 1e-45, 1e-38, LARGEST, -LARGEST, 1.5e-36, 1.4e-36]

any_floats = arrays(np.float32, st.integers(0, 600), elements=st.floats(width=32))


def check_against_reference(codec: Codec, x: np.ndarray) -> None:
    payload = encode(codec, x)
    np.testing.assert_array_equal(payload, reference_encode(codec, x))
    np.testing.assert_array_equal(bits(decode(codec, payload, x.size)), bits(reference_decode(codec, payload, x.size)))


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
        lambda: native.codec_block_values(7),
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
