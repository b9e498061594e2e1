"""Error feedback: bytes and residuals of the kernels against NumPy, and what is carried."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lepton_mpi import native
from lepton_mpi.compress.codec import CODECS
from lepton_mpi.compress.reference import REFERENCES, encode_with_feedback
from lepton_mpi.errors import CodecError

by_name = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
lossy = pytest.mark.parametrize("codec", CODECS[1:], ids=lambda codec: codec.name)
NONFINITE = [np.inf, -np.inf, np.nan]


def normal(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def check_against_reference(codec, g: np.ndarray, residual: np.ndarray) -> None:
    payload = np.full(codec.encoded_nbytes(g.size), 0xA5, np.uint8)
    expected_payload, expected = encode_with_feedback(codec.name, g, residual)
    received = residual.copy()
    codec.encode_with_feedback(g, received, payload)
    if not np.isnan(g + residual).any():  # else sign and payload of a NaN are the compiler's choice
        np.testing.assert_array_equal(payload, expected_payload)
    np.testing.assert_array_equal(received.view(np.uint32), expected.view(np.uint32))


@by_name
@pytest.mark.parametrize("n", [0, 1, 31, 63, 64, 65, 255, 257, 1023, 1024, 1025, 5000])
def test_same_as_reference(codec, n):
    check_against_reference(codec, normal(n, 1), 0.1 * normal(n, 2))


@by_name
@settings(max_examples=60, deadline=None)
@given(pair=st.integers(0, 300).flatmap(lambda n: st.tuples(*[arrays(np.float32, n, elements=st.floats(width=32))] * 2)))
def test_same_as_reference_on_any_floats(codec, pair):
    with np.errstate(all="ignore"):
        check_against_reference(codec, *pair)


@by_name
def test_none_is_a_gradient_of_zeros(codec):
    for residual in (normal(3000, 1), np.zeros(3000, np.float32)):
        payloads = [np.zeros(codec.encoded_nbytes(3000), np.uint8) for _ in range(2)]
        rests = [residual.copy(), residual.copy()]
        codec.encode_with_feedback(None, rests[0], payloads[0])
        codec.encode_with_feedback(np.zeros(3000, np.float32), rests[1], payloads[1])
        np.testing.assert_array_equal(*payloads)
        np.testing.assert_array_equal(*rests)


@by_name
@pytest.mark.parametrize("special", NONFINITE)
def test_nonfinite_block_leaves_its_residual_clean(codec, special):
    g, before = normal(4000, 1), 0.1 * normal(4000, 2)
    g[1500] = special
    after, payload = before.copy(), np.zeros(codec.encoded_nbytes(4000), np.uint8)
    codec.encode_with_feedback(g, after, payload)
    block = slice(1500 // codec.block_values * codec.block_values, (1500 // codec.block_values + 1) * codec.block_values)
    np.testing.assert_array_equal(after[block], before[block])
    assert np.isfinite(after).all()
    assert not np.isfinite(REFERENCES[codec.name].decode(payload, 4000)[block]).any()


@lossy
def test_value_rounded_to_infinity_leaves_its_residual_clean(codec):
    largest = np.finfo(np.float32).max
    g, after = np.array([largest, -largest, 1, 2], np.float32), np.full(4, 0.5, np.float32)
    codec.encode_with_feedback(g, after, np.zeros(codec.encoded_nbytes(4), np.uint8))
    assert np.isfinite(after).all()


@by_name
def test_what_is_too_small_to_send_is_carried(codec):
    g = np.full(70, 3e-39, np.float32)  # subnormal
    residual, payload = np.zeros(70, np.float32), np.zeros(codec.encoded_nbytes(70), np.uint8)
    delivered = np.zeros(70)
    for _ in range(1000):
        codec.encode_with_feedback(g, residual, payload)
        delivered += REFERENCES[codec.name].decode(payload, 70)
    np.testing.assert_allclose(delivered + residual, 3e-36, rtol=1e-3)
    if codec.name != "fp16":  # whose smallest value is 6e-8
        assert np.all(delivered > 0)


@lossy
def test_delivered_sum_follows_the_gradients(codec):
    """What is delivered over many steps differs from the sum of the gradients by one residual, however coarse the codec."""
    rng = np.random.default_rng(5)
    residual, payload = np.zeros(2000, np.float32), np.zeros(codec.encoded_nbytes(2000), np.uint8)
    delivered, total = np.zeros(2000), np.zeros(2000)
    for _ in range(200):
        g = (rng.standard_normal(2000) + 0.2).astype(np.float32)
        total += g
        codec.encode_with_feedback(g, residual, payload)
        delivered += REFERENCES[codec.name].decode(payload, 2000)
    np.testing.assert_allclose(delivered + residual, total, atol=2e-3)
    assert np.abs(residual).max() < 30
    assert np.abs(total).mean() > 30


@by_name
def test_arrays_that_do_not_fit_are_refused(codec):
    g, payload = normal(300), np.zeros(codec.encoded_nbytes(300), np.uint8)
    frozen = normal(300)
    frozen.flags.writeable = False
    for gradient, residual, out, message in [
        (g.astype(np.float64), normal(300), payload, "float32"),
        (g, normal(100), payload, "bytes"),
        (normal(100), normal(300), payload, "bytes"),
        (normal(299), normal(300), payload, "bytes" if codec.block_values in (1, 256) else "the gradient's 299 values"),
        (g, normal(300), payload[:-1], "bytes"),
        (g, g, payload, "apart from the gradient"),
        (g, frozen, payload, "read-only"),
    ]:
        with pytest.raises(CodecError, match=message):
            codec.encode_with_feedback(gradient, residual, out)


def test_native_refuses_what_does_not_fit():
    g, payload = normal(10), np.zeros(14, np.uint8)
    with pytest.raises(ValueError, match="g: expected 10 values, received 9"):
        native.codec_encode_with_feedback(2, g[:9].copy(), g, payload)
    with pytest.raises(ValueError, match="must not be one array"):
        native.codec_encode_with_feedback(2, g, g, payload)
    with pytest.raises(ValueError, match="expected 14 bytes"):
        native.codec_encode_with_feedback(2, None, g, payload[:13])
    with pytest.raises(ValueError, match="expected codec 0"):
        native.codec_encode_with_feedback(9, None, g, payload)
