"""Top-k payloads: bytes against NumPy, what is kept back, thresholds, damaged payloads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lepton_mpi import native
from lepton_mpi.compress import topk, topk_reference
from lepton_mpi.compress.topk import decode, max_nbytes, warm_up_share
from lepton_mpi.errors import CodecError

LARGEST = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)


def normal(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def encode(x: np.ndarray, threshold: float) -> np.ndarray:
    out = np.full(max_nbytes(x.size), 0xA5, np.uint8)
    nbytes, _ = native.topk_encode(x, threshold, out)
    assert np.all(out[nbytes:] == 0xA5)
    return out[:nbytes]


def decoded(payload: np.ndarray, n: int) -> np.ndarray:
    out = np.full(n, 99, np.float32)
    decode(payload, out)
    return out


def check_against_reference(x: np.ndarray, threshold: float) -> None:
    payload = encode(x, threshold)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(payload, topk_reference.encode(x, threshold))
        np.testing.assert_array_equal(decoded(payload, x.size), topk_reference.decode(payload, x.size))


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 1000, 65535, 65536, 65537, 140001])
@pytest.mark.parametrize("threshold", [0.01, 1.0, 3.0, 100.0])
def test_same_bytes_as_reference(n, threshold):
    check_against_reference(normal(n, n), threshold)


@settings(max_examples=100, deadline=None)
@given(
    x=arrays(np.float32, st.integers(0, 200), elements=st.floats(width=32)), threshold=st.sampled_from([1e-45, 1e-34, 1.0, 1e30])
)
def test_same_bytes_as_reference_on_any_floats(x, threshold):
    check_against_reference(x, threshold)


@pytest.mark.parametrize("special", [0.0, TINY, 2.0**-112, 2.0**-113, LARGEST, np.inf, -np.inf, np.nan])
def test_same_bytes_as_reference_with_a_special_value(special):
    for x in (normal(70000), np.zeros(70000, np.float32)):
        for position in (3, 69999):
            x[position] = special
            check_against_reference(x, 2.5)


@settings(max_examples=100, deadline=None)
@given(x=arrays(np.float32, st.integers(1, 200), elements=st.floats(-(2.0**126), 2.0**126, width=32)))
def test_error_of_what_is_sent_is_at_most_half_a_unit(x):
    largest = np.abs(x).max()
    threshold = max(float(largest) / 2, 1e-45)
    values = decoded(encode(x, threshold), x.size).astype(np.float64)
    if largest < 2.0**-112:
        assert not values.any()
        return
    reached = np.abs(x) >= np.float32(threshold)
    bound = np.maximum(np.abs(x) * 2.0**-11, float(largest) * 2.0**-39)
    assert np.all(np.abs(values - x)[reached] <= bound[reached])
    np.testing.assert_array_equal(values[~reached & (values == 0)], 0)


def test_dense_where_that_is_shorter():
    x = normal(10000)
    assert encode(x, 0.1)[0] == 1
    assert encode(x, 0.1).size == max_nbytes(x.size) == 4 + 4 + 20000
    assert encode(x, 2.0)[0] == 0
    np.testing.assert_allclose(decoded(encode(x, 0.1), x.size), x, rtol=2.0**-11, atol=1e-8)


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("threshold", [0.1, 3.0])
def test_nonfinite_block_is_nan_and_leaves_its_residual_clean(special, threshold):
    g, before = normal(150000, 1), normal(150000, 2)
    g[70000] = special
    residual, out = before.copy(), np.zeros(max_nbytes(g.size), np.uint8)
    nbytes, _ = native.topk_encode_with_feedback(g, residual, threshold, out)
    np.testing.assert_array_equal(np.isnan(decoded(out[:nbytes], g.size)), np.arange(g.size) // 65536 == 1)
    np.testing.assert_array_equal(residual[65536:131072], before[65536:131072])
    assert np.isfinite(residual).all()


@pytest.mark.parametrize("threshold", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("n", [0, 1, 65537, 100000])
def test_feedback_keeps_what_is_not_sent(n, threshold):
    g, residual, out = normal(n, 1), normal(n, 2), np.zeros(max_nbytes(n), np.uint8)
    x = g + residual
    nbytes, _ = native.topk_encode_with_feedback(g, residual, threshold, out)
    np.testing.assert_array_equal(out[:nbytes], encode(x, threshold))
    np.testing.assert_array_equal(residual, x - decoded(out[:nbytes], n))


def test_none_is_a_gradient_of_zeros():
    residuals = [normal(1000), normal(1000)]
    outs = [np.zeros(max_nbytes(1000), np.uint8) for _ in range(2)]
    native.topk_encode_with_feedback(None, residuals[0], 1.5, outs[0])
    native.topk_encode_with_feedback(np.zeros(1000, np.float32), residuals[1], 1.5, outs[1])
    np.testing.assert_array_equal(*residuals)
    np.testing.assert_array_equal(*outs)


def test_largest_value_leaves_its_residual_finite():
    residual = np.zeros(2, np.float32)
    native.topk_encode_with_feedback(np.array([LARGEST, 1], np.float32), residual, 1.0, np.zeros(64, np.uint8))
    assert np.isfinite(residual).all()


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.1, 0.5, 1.0])
def test_threshold_is_reached_by_the_share(share):
    x = normal(50000, 4)
    threshold = native.topk_threshold(x, share)
    wanted = int(np.ceil(share * x.size))
    assert wanted <= (np.abs(x) >= threshold).sum()
    assert (np.abs(x) >= threshold * (1 + 2.0**-6)).sum() <= wanted


def test_threshold_of_special_arrays():
    zeros = np.zeros(100, np.float32)
    for x in (zeros, np.zeros(0, np.float32), np.full(5, np.nan, np.float32)):
        assert native.topk_threshold(x, 0.5) > 0
    x = normal(1000)
    x[::10] = np.inf
    assert np.isfinite(native.topk_threshold(x, 0.01))
    assert (np.abs(x[np.isfinite(x)]) >= native.topk_threshold(x, 0.01)).sum() >= 9


@pytest.mark.parametrize("n", [1, 100, 16384, 16385, 1_000_003])
def test_sampled_threshold_of_gradient_and_residual(n):
    x, residual = normal(n, 5), normal(n, 6)
    for rest, values in ((None, x), (residual, x + residual)):
        threshold = native.topk_sampled_threshold(x, rest, 0.1)
        share = (np.abs(values) >= threshold).mean()
        assert 0.085 < share < 0.125 or n < 1000
        assert share > 0
        assert threshold == native.topk_sampled_threshold(x, rest, 0.1)
    with pytest.raises(ValueError, match="residual: expected"):
        native.topk_sampled_threshold(x, np.zeros(n + 1, np.float32), 0.1)
    with pytest.raises(ValueError, match="share"):
        native.topk_sampled_threshold(x, None, 1.5)


def test_delivered_sum_follows_the_gradients():
    rng = np.random.default_rng(6)
    n, counts = 20000, []
    out, residual = np.zeros(max_nbytes(n), np.uint8), np.zeros(n, np.float32)
    delivered, total = np.zeros(n), np.zeros(n)
    for _ in range(300):
        g = (rng.standard_normal(n) + 0.1).astype(np.float32)
        total += g
        threshold = native.topk_sampled_threshold(g, residual, 0.01)
        nbytes, num_values = native.topk_encode_with_feedback(g, residual, threshold, out)
        counts.append(num_values)
        assert nbytes == 4 + 8 + 4 * num_values
        delivered += decoded(out[:nbytes], n)
    np.testing.assert_allclose(delivered + residual, total, atol=1e-2)
    assert 0.007 < np.mean(counts) / n < 0.014


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_encode_sends_the_share(share):
    x, out = normal(30000), np.zeros(max_nbytes(30000), np.uint8)
    values = decoded(out[: topk.encode(x, share, out)], x.size)
    sent = values != 0
    assert sent.mean() == pytest.approx(share, rel=0.15)
    np.testing.assert_allclose(values[sent], x[sent], rtol=2.0**-11, atol=1e-8)


def test_warm_up_shares():
    shares = [warm_up_share(0.001, step, 100) for step in (0, 24, 25, 50, 75, 99, 100, 1000)]
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.0628717, 0.0158114, 0.0039763, 0.0039763, 0.001, 0.001], rtol=1e-4)
    assert warm_up_share(0.5, 0, 100) == 0.5
    assert warm_up_share(0.01, 0, 0) == 0.01


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(0, 100),
    cut=st.integers(0, 60),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
)
def test_damaged_payloads_are_refused_or_decoded(n, cut, changes):
    """Whatever the bytes, a decoder stays within its arrays and either fills them or refuses."""
    payload = encode(normal(n, n), 1.0).copy()
    payload = payload[: max(payload.size - cut, 0)]
    for position, byte in changes:
        if payload.size:
            payload[position % payload.size] = byte
    guarded = np.full(n + 20, 7, np.float32)
    try:
        decode(payload, guarded[10 : 10 + n])
    except CodecError as error:
        assert "damaged or cut" in str(error)
    assert np.all(guarded[:10] == 7)
    assert np.all(guarded[10 + n :] == 7)


def test_payload_of_another_size_is_refused():
    for threshold in (0.1, 2.0):
        payload = encode(normal(1000), threshold)
        for wrong in (payload[:-1], np.append(payload, np.uint8(0)), payload[:3], payload[:6]):
            with pytest.raises(CodecError, match="damaged or cut"):
                decoded(wrong.copy(), 1000)


def test_decode_adds_to_what_is_there():
    x, start = normal(70000, 1), normal(70000, 2)
    for threshold in (0.1, 2.0):
        out = start.copy()
        decode(encode(x, threshold), out, add=True)
        np.testing.assert_array_equal(out, start + decoded(encode(x, threshold), x.size))


def test_what_does_not_fit_is_refused():
    g, out = normal(100), np.zeros(max_nbytes(100), np.uint8)
    for call, message in [
        (lambda: topk.encode(g, 0.0, out), "share"),
        (lambda: topk.encode(g, 1.5, out), "share"),
        (lambda: topk.encode(g.astype(np.float64), 0.1, out), "float32"),
        (lambda: topk.encode(g, 0.1, out[:-1]), "of room"),
        (lambda: decode(out.view(np.int8), g), "uint8"),
        (lambda: decode(out, g.reshape(10, 10)), "1 dim"),
    ]:
        with pytest.raises(CodecError, match=message):
            call()
    for call, message in [
        (lambda: native.topk_encode(g, 0.0, out), "positive threshold"),
        (lambda: native.topk_encode(g, np.nan, out), "positive threshold"),
        (lambda: native.topk_encode(g, 1.0, out[:-1]), "at least"),
        (lambda: native.topk_threshold(g, 0.0), "share"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
