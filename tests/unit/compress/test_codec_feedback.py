"""Error feedback: bytes and residuals of the kernels against NumPy, what is carried, and what a resize preserves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lepton_mpi import native
from lepton_mpi.compress.codec import CODECS, Int4Codec, Int8Codec, Sign1Codec
from lepton_mpi.compress.feedback import ErrorFeedback, Residuals, pending_residual
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
    feedback, payload = ErrorFeedback(codec), np.zeros(codec.encoded_nbytes(70), np.uint8)
    delivered = np.zeros(70)
    for _ in range(1000):
        feedback.encode("w", g, payload)
        delivered += REFERENCES[codec.name].decode(payload, 70)
    np.testing.assert_allclose(delivered + feedback.residuals.of("w"), 3e-36, rtol=1e-3)
    if codec.name != "fp16":  # whose smallest value is 6e-8
        assert np.all(delivered > 0)


@lossy
def test_delivered_sum_follows_the_gradients(codec):
    """What is delivered over many steps differs from the sum of the gradients by one residual, however coarse the codec."""
    rng = np.random.default_rng(5)
    feedback = ErrorFeedback(codec)
    payload = np.zeros(codec.encoded_nbytes(2000), np.uint8)
    delivered, total = np.zeros(2000), np.zeros(2000)
    for _ in range(200):
        g = (rng.standard_normal(2000) + 0.2).astype(np.float32)
        total += g
        feedback.encode("w", g, payload)
        delivered += REFERENCES[codec.name].decode(payload, 2000)
    rest = feedback.residuals.of("w")
    np.testing.assert_allclose(delivered + rest, total, atol=2e-3)
    assert np.abs(rest).max() < 30
    assert np.abs(total).mean() > 30


def test_residuals_belong_to_names():
    feedback = ErrorFeedback(Int4Codec())
    for name, n in (("a", 100), ("b", 7)):
        feedback.encode(name, normal(n), np.zeros(feedback.codec.encoded_nbytes(n), np.uint8))
    state = feedback.residuals.state()
    assert {name: residual.size for name, residual in state.items()} == {"a": 100, "b": 7}
    other = Residuals()
    other.load(state)
    state["a"][:] = 9
    np.testing.assert_array_equal(other.of("a"), feedback.residuals.of("a"))
    assert not np.array_equal(other.of("a"), state["a"])


def test_a_rank_without_a_gradient_still_sends_its_residual():
    feedback, payload = ErrorFeedback(Sign1Codec()), np.zeros(Sign1Codec().encoded_nbytes(50), np.uint8)
    with pytest.raises(CodecError, match="size is unknown"):
        feedback.encode("w", None, payload)
    feedback.encode("w", normal(50), payload)
    pending = feedback.residuals.of("w").copy()
    feedback.encode("w", None, payload)
    np.testing.assert_allclose(REFERENCES["sign1"].decode(payload, 50) + feedback.residuals.of("w"), pending, atol=1e-6)


def test_release_delivers_the_residual_with_an_exact_step():
    feedback = ErrorFeedback(Int8Codec())
    g = normal(300)
    feedback.encode("w", g, np.zeros(feedback.codec.encoded_nbytes(300), np.uint8))
    pending = feedback.residuals.of("w").copy()
    assert pending.any()
    np.testing.assert_array_equal(feedback.release("w", g), g + pending)
    assert not feedback.residuals.of("w").any()


@pytest.mark.parametrize("old, new", [(1, 4), (4, 1), (3, 5), (5, 2)])
def test_pending_residual_survives_a_resize(old, new):
    """With integers nothing is rounded: what the mean over ranks still owes is the same before and after."""
    rng = np.random.default_rng(old)
    workers = [(old * rng.integers(-99, 99, 500)).astype(np.float32) for _ in range(old)]
    server = rng.integers(-99, 99, 500).astype(np.float32)
    owed = sum(worker.astype(np.float64) for worker in workers) / old + server
    r = pending_residual(workers, server)
    assert r.dtype == np.float32
    np.testing.assert_array_equal(np.mean([r.astype(np.float64)] * new, axis=0), owed)
    again = pending_residual([r] * new)
    np.testing.assert_array_equal(again, r)


class TwoPhases:
    """Workers and owners that exchange with feedback on both sides; what all ranks receive is the mean."""

    def __init__(self, codec, num_ranks: int, n: int) -> None:
        self.codec = codec
        self.workers = [np.zeros(n, np.float32) for _ in range(num_ranks)]
        self.server = np.zeros(n, np.float32)

    def step(self, gradients: list[np.ndarray]) -> np.ndarray:
        total = np.zeros(self.server.size, np.float32)
        payload = np.zeros(self.codec.encoded_nbytes(total.size), np.uint8)
        for g, residual in zip(gradients, self.workers, strict=True):
            self.codec.encode_with_feedback(g, residual, payload)
            self.codec.decode(payload, total, add=True)
        self.codec.encode_with_feedback(total / np.float32(len(gradients)), self.server, payload)
        out = np.zeros_like(total)
        self.codec.decode(payload, out)
        return out


@lossy
def test_two_phases_deliver_everything_across_a_resize(codec):
    rng = np.random.default_rng(8)
    delivered, total = np.zeros(1500), np.zeros(1500)
    pending = np.zeros(1500, np.float32)
    for num_ranks in (3, 5, 2):
        ranks = TwoPhases(codec, num_ranks, 1500)
        ranks.workers = [pending.copy() for _ in range(num_ranks)]
        for _ in range(40):
            gradients = [(rng.standard_normal(1500) + 0.3).astype(np.float32) for _ in range(num_ranks)]
            total += np.mean(gradients, axis=0, dtype=np.float64)
            delivered += ranks.step(gradients)
        pending = pending_residual(ranks.workers, ranks.server)
    np.testing.assert_allclose(delivered + pending, total, atol=1e-3)
    assert np.abs(pending).mean() < np.abs(total).mean() / 5


def test_pending_residual_refuses_what_does_not_fit():
    for workers, server in (([], None), ([normal(3), normal(4)], None), ([normal(3)], normal(4))):
        with pytest.raises(CodecError, match="residuals to merge"):
            pending_residual(workers, server)


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
    feedback = ErrorFeedback(codec)
    feedback.encode("w", g, payload)
    with pytest.raises(CodecError, match="it has 300 values, the gradient 7"):
        feedback.encode("w", normal(7), payload)


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
