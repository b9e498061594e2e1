"""Attention: against the definition, central differences and PyTorch; blocks, groups, masks and dropout.

Dims: B batch, T positions, H query heads, G key/value heads, D features of a head.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lepton_mpi.ops import attention as attention_module
from lepton_mpi.ops.attention import ProbabilityDropout, attention, attention_backward
from lepton_mpi.ops.dropout import dropout_mask

# B, T, H, G, D
SHAPES = [(1, 1, 1, 1, 1), (2, 5, 3, 3, 2), (3, 7, 6, 2, 5), (2, 13, 4, 1, 3)]
# More than one block of queries, the last of them short.
LONG = (2, 150, 4, 2, 8)


def make(shape: tuple[int, ...], dtype: type = np.float64) -> tuple[np.ndarray, ...]:
    b, t, h, g, d = shape
    random = np.random.default_rng(6)
    return tuple(random.standard_normal((b, t, n, d)).astype(dtype) for n in (h, g, g, h))


def mask_of(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.random.default_rng(7).random(shape[:2]) < 0.7
    mask[-1, 0] = False  # the first query of a causal row then has no key
    return mask


def definition(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool, mask: np.ndarray | None, scale: float) -> np.ndarray:
    y = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, t, h in itertools.product(*map(range, q.shape[:3])):
        keys = [s for s in range(q.shape[1]) if (s <= t or not causal) and (mask is None or mask[b, s])]
        if keys:
            powers = np.exp(scale * (k[b, keys, h // group] @ q[b, t, h]))
            y[b, t, h] = powers @ v[b, keys, h // group] / powers.sum()
    return y


def run(q, k, v, dy, mask=None, **options):
    y, saved = attention(q, k, v, key_mask=mask, scale=0.4, **options)
    return y, *attention_backward(dy, q, k, v, saved)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_against_central_differences(shape: tuple[int, ...], masked: bool, causal: bool) -> None:
    q, k, v, dy = make(shape)
    mask = mask_of(shape) if masked else None
    y, *gradients = run(q, k, v, dy, mask, causal=causal)
    np.testing.assert_allclose(y, definition(q, k, v, causal, mask, 0.4), atol=1e-12)
    step = 1e-6
    for array, gradient in zip((q, k, v), gradients, strict=True):
        for place in list(np.ndindex(array.shape))[:: 1 + array.size // 30]:
            ends = []
            for sign in (1, -1):
                array[place] += sign * step
                ends.append((attention(q, k, v, causal=causal, key_mask=mask, scale=0.4)[0] * dy).sum())
                array[place] -= sign * step
            assert gradient[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, LONG])
def test_native_against_float64(shape: tuple[int, ...], masked: bool, causal: bool) -> None:
    arrays = make(shape)
    mask = mask_of(shape) if masked else None
    expected = run(*arrays, mask, causal=causal)
    kept = [array.astype(np.float32) for array in arrays]
    found = run(*(array.copy() for array in kept), mask, causal=causal)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_change_nothing(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, mask = make((5, 150, 4, 2, 8)), mask_of(LONG)
    mask = np.concatenate([mask, mask, mask[:1]])
    expected = definition(*arrays[:3], causal, mask, 0.4)
    results = []
    for queries, scores in ((1000, 1 << 30), (64, 1), (7, 1 << 14)):
        monkeypatch.setattr(attention_module, "_BLOCK_QUERIES", queries)
        monkeypatch.setattr(attention_module, "_BLOCK_SCORES", scores)
        results.append(run(*arrays, mask, causal=causal))
    for result in results:
        np.testing.assert_allclose(result[0], expected, atol=1e-12)
        for one, other in zip(result, results[0], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_probabilities_computed_again_give_the_same_bits(causal: bool, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, mask = make(LONG, np.float32), mask_of(LONG)
    dropout = ProbabilityDropout(rate, key=1, step=2, first_row=3, num_heads=4) if rate else None
    results = []
    for per_feature in (0, 1000):
        monkeypatch.setattr(attention_module, "_KEPT_PER_FEATURE", per_feature)
        saved = attention(*arrays[:3], causal=causal, scale=0.4)[1]
        assert (saved.chunks[0][0][1] is None) == (per_feature == 0)
        results.append(run(*arrays, mask, causal=causal, dropout=dropout))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(0, 4, 2, 1, 3), (2, 0, 2, 1, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_to_attend(shape: tuple[int, ...], dtype: type) -> None:
    arrays = make(shape, dtype)
    y, dq, dk, dv = run(*arrays, causal=True)
    assert [a.shape for a in (y, dq, dk, dv)] == [arrays[i].shape for i in (0, 0, 1, 2)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(2, 37, 6, 6, 8), LONG])
def test_against_pytorch(shape: tuple[int, ...], causal: bool) -> None:
    torch = pytest.importorskip("torch")
    arrays = make(shape, np.float32)
    mask = mask_of(shape)
    mask[:, 0] = True  # PyTorch gives NaN for a row without a key
    allowed = torch.tensor(mask)[:, None, None, :]
    if causal:
        allowed = allowed & torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
    q, k, v = (torch.tensor(a).transpose(1, 2).requires_grad_() for a in arrays[:3])
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=0.4, enable_gqa=True)
    y.backward(torch.tensor(arrays[3]).transpose(1, 2))
    for one, other in zip(run(*arrays, mask, causal=causal), (y, q.grad, k.grad, v.grad), strict=True):
        np.testing.assert_allclose(one, other.detach().transpose(1, 2).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("causal", [False, True])
def test_dropout_is_numbered_by_sample_head_query_and_key(causal: bool, dtype: type) -> None:
    b, t, h, g, _ = shape = (3, 70, 4, 2, 2)
    q, k, v, dy = make(shape, dtype)
    dropout = ProbabilityDropout(0.4, key=11, step=3, first_row=5, num_heads=h)
    y, dq, dk, dv = run(q, k, v, dy, causal=causal, dropout=dropout)
    kept = dropout_mask((b, h, t, t), 0.4, 11, 3, 5, row_size=h * t * t)
    scores = 0.4 * np.einsum("bthd,bshd->bhts", q, k.repeat(h // g, axis=2))
    p = np.exp(scores) * (np.tri(t) if causal else 1)
    p /= p.sum(axis=-1, keepdims=True)
    expected = np.einsum("bhts,bshd->bthd", p * kept / 0.6, v.repeat(h // g, axis=2))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    # The heads of a shard, alone, are those of the whole; so are the samples of a rank.
    second = ProbabilityDropout(0.4, key=11, step=3, first_row=6, num_heads=h, first_head=2)
    part = run(q[1:, :, 2:], k[1:, :, 1:], v[1:, :, 1:], dy[1:, :, 2:], causal=causal, dropout=second)
    for one, whole, first in zip(part, (y, dq, dk, dv), (2, 2, 1, 1), strict=True):
        np.testing.assert_allclose(one, whole[1:, :, first:], rtol=1e-4, atol=1e-5)


def test_gradients_under_dropout() -> None:
    q, k, v, dy = make((2, 6, 2, 1, 3))
    options = {"causal": True, "scale": 0.4, "dropout": ProbabilityDropout(0.3, key=2, step=0, first_row=0, num_heads=2)}
    _, saved = attention(q, k, v, **options)
    gradients = attention_backward(dy, q, k, v, saved)
    step = 1e-6
    for array, gradient in zip((q, k, v), gradients, strict=True):
        for place in np.ndindex(array.shape):
            ends = []
            for sign in (1, -1):
                array[place] += sign * step
                ends.append((attention(q, k, v, **options)[0] * dy).sum())
                array[place] -= sign * step
            assert gradient[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-7)


def test_bf16_is_near() -> None:
    arrays = make(LONG, np.float32)
    for one, other in zip(run(*arrays, causal=True, precision="bf16"), run(*arrays, causal=True), strict=True):
        error = np.abs(one - other).max()
        assert 0 < error < 0.03 * np.abs(other).max()


def test_arrays_are_left_as_they_were() -> None:
    arrays = make(LONG, np.float32)
    kept = [array.copy() for array in arrays]
    run(*arrays, causal=True)
    for one, other in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("q", (2, 5, 4), "q: expected shape"),
        ("q", (2, 5, 3, 8), "multiple of the 2 heads"),
        ("k", (2, 6, 2, 8), "k: expected shape"),
        ("k", (2, 5, 0, 8), "v: expected shape"),
        ("v", (2, 5, 1, 8), "v: expected shape"),
        ("key_mask", (2, 6), "key_mask: expected shape"),
    ],
)
def test_wrong_shapes(name: str, shape: tuple[int, ...], message: str) -> None:
    q, k, v, _ = make((2, 5, 4, 2, 8))
    arrays = {"q": q, "k": k, "v": v, name: np.ones(shape)}
    with pytest.raises(ValueError, match=message):
        attention(**arrays, causal=False, scale=1.0)


def test_a_wrong_gradient() -> None:
    q, k, v, dy = make((2, 5, 4, 2, 8))
    _, saved = attention(q, k, v, causal=False, scale=1.0)
    with pytest.raises(ValueError, match="dy: expected shape"):
        attention_backward(dy[:, :4], q, k, v, saved)
