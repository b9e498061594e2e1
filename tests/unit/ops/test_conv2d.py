"""Convolutions: against PyTorch, whole against pieces, native against NumPy, empty batches, refusals."""

import numpy as np
import pytest

from lepton_mpi.ops import columns as columns_module
from lepton_mpi.ops.bf16 import round_to_bf16
from lepton_mpi.ops.columns import col2im_add, col2im_add_reference, im2col, im2col_reference, pieces
from lepton_mpi.ops.conv2d import conv2d, conv2d_backward_input, conv2d_backward_weight
from lepton_mpi.ops.windows import Windows, pair

# (B, H, W, I, O, kernel, stride, padding, dilation, groups)
CASES = {
    "same": (2, 7, 5, 3, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "odd sizes": (2, 7, 5, 3, 4, (3, 2), (2, 1), (0, 1), (2, 1), 1),
    "dilated columns": (1, 7, 11, 3, 2, (1, 3), (1, 2), (0, 3), (1, 3), 1),
    "pointwise": (2, 5, 5, 7, 3, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "pointwise strided": (2, 5, 5, 7, 3, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "groups": (3, 8, 9, 4, 6, (3, 3), (2, 2), (1, 1), (1, 1), 2),
    "one channel a group, two filters": (3, 8, 9, 6, 12, (5, 3), (1, 2), (4, 1), (1, 3), 6),
    "depthwise": (3, 8, 9, 5, 5, (3, 3), (2, 1), (1, 2), (1, 2), 5),
    "one pixel": (2, 1, 1, 1, 1, (5, 5), (1, 1), (2, 2), (1, 1), 1),
    "kernel beyond the image": (1, 2, 3, 2, 3, (7, 7), (3, 3), (6, 6), (1, 1), 1),
    "no images": (0, 5, 5, 2, 3, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "no images, depthwise": (0, 5, 5, 2, 2, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    "no images, pointwise": (0, 5, 5, 2, 3, (1, 1), (1, 1), (0, 0), (1, 1), 1),
}


def make(case, dtype):
    batch, height, width, inputs, outputs, kernel, stride, padding, dilation, groups = case
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, height, width, inputs)).astype(dtype)
    weight = random.standard_normal((outputs, inputs // groups, *kernel)).astype(dtype)
    bias = random.standard_normal(outputs).astype(dtype)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    dy = random.standard_normal(conv2d(x, weight, **options).shape).astype(dtype)
    return x, weight, bias, dy, options


def all_results(x, weight, bias, dy, options):
    dweight, dbias = np.ones_like(weight), np.ones_like(bias)  # added to
    conv2d_backward_weight(dy, x, dweight, dbias, **options)
    dx = conv2d_backward_input(dy, weight, x.shape, **options)
    return conv2d(x, weight, bias, **options), dx, dweight, dbias


@pytest.mark.parametrize("piece_nbytes", [1 << 20, 700], ids=["whole", "pieces"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_pytorch(case, dtype, tolerance, piece_nbytes, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(columns_module, "_PIECE_NBYTES", piece_nbytes)
    arrays = make(case, dtype)
    x, weight, bias, dy, options = arrays
    images = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    parameters = [torch.tensor(array, requires_grad=True) for array in (weight, bias)]
    expected = torch.nn.functional.conv2d(images, *parameters, **options)
    expected.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
    y, dx, dweight, dbias = all_results(*arrays)
    pairs = [
        (y.transpose(0, 3, 1, 2), expected.detach()),
        (dx.transpose(0, 3, 1, 2), images.grad),
        (dweight - 1, parameters[0].grad),
        (dbias - 1, parameters[1].grad),
    ]
    for received, wanted in pairs:
        assert received.dtype == dtype
        scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
        np.testing.assert_allclose(received, wanted.numpy(), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_are_adjoints(case):
    x, weight, _, dy, options = make(case, np.float64)
    inner = float((conv2d(x, weight, **options) * dy).sum())
    dweight = np.zeros_like(weight)
    conv2d_backward_weight(dy, x, dweight, **options)
    dx = conv2d_backward_input(dy, weight, x.shape, **options)
    assert float((x * dx).sum()) == pytest.approx(inner, abs=1e-9)
    assert float((weight * dweight).sum()) == pytest.approx(inner, abs=1e-9)


@pytest.mark.parametrize("channels", [(0, 3), (1, 2)], ids=["all channels", "one channel"])
@pytest.mark.parametrize("piece", [((0, 3), (0, 3)), ((1, 3), (1, 2)), ((1, 1), (0, 3))], ids=["whole", "part", "nothing"])
@pytest.mark.parametrize("windows", [Windows((3, 3), (2, 2), (1, 1)), Windows((2, 3), (1, 2), (1, 2), (3, 2))], ids=str)
def test_native_columns_are_the_numpy_ones(windows, piece, channels):
    random = np.random.default_rng(1)
    x = random.standard_normal((3, 5, 7, 3)).astype(np.float32)
    received = im2col(x, windows, piece, channels)
    np.testing.assert_array_equal(received, im2col_reference(x, windows, piece, channels))
    ones, others = np.ones_like(x), np.ones_like(x)
    col2im_add(received, ones, windows, piece, channels)
    col2im_add_reference(received, others, windows, piece, channels)
    np.testing.assert_allclose(ones, others, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("limit", [1, 500, 3000, 10**9])
def test_pieces_cover_every_window_once_and_are_bounded(limit, monkeypatch):
    monkeypatch.setattr(columns_module, "_PIECE_NBYTES", limit)
    x, windows = np.zeros((5, 7, 6, 2), np.float32), Windows((3, 3), padding=(1, 1))
    seen = np.zeros((5, 7), int)
    for images, rows in pieces(x, windows, 2):
        seen[slice(*images), slice(*rows)] += 1
        nbytes = (images[1] - images[0]) * (rows[1] - rows[0]) * 6 * 18 * 4
        assert nbytes <= max(limit, 6 * 18 * 4)  # one row of windows is the least
    assert (seen == 1).all()


@pytest.mark.parametrize("case", [CASES["same"], CASES["pointwise"], CASES["depthwise"]], ids=["same", "pointwise", "depthwise"])
def test_bf16_rounds_the_operands(case):
    x, weight, bias, dy, options = make(case, np.float32)
    rounded = [round_to_bf16(array) for array in (x, weight)]
    received = all_results(x, weight, bias, dy, {**options, "precision": "bf16"})
    expected = all_results(*rounded, bias, round_to_bf16(dy), options)
    for one, other in zip(received[:3], expected[:3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert np.abs(received[0] - conv2d(x, weight, bias, **options)).max() > 1e-4


def test_arrays_with_gaps_and_untouched_inputs():
    x, weight, bias, dy, options = make(CASES["same"], np.float32)
    expected = all_results(x, weight, bias, dy, options)
    gaps = np.repeat(x, 2, axis=3)[..., ::2], np.repeat(weight, 2, axis=0)[::2], bias, np.repeat(dy, 2, axis=1)[:, ::2]
    for array in gaps:
        array.flags.writeable = False
    for received, wanted in zip(all_results(*gaps, options), expected, strict=True):
        np.testing.assert_array_equal(received, wanted)


X, W = np.zeros((2, 5, 5, 4), np.float32), np.zeros((6, 4, 3, 3), np.float32)
REFUSED = {
    "channels": (lambda: conv2d(X, W[:, :3]), r"x: expected shape \(any, any, any, 3\)"),
    "dims of x": (lambda: conv2d(X[0], W), "x: expected shape"),
    "dims of W": (lambda: conv2d(X, W[0]), "W: expected shape"),
    "groups": (lambda: conv2d(X, W, groups=4), "groups: expected a divisor of 6"),
    "no groups": (lambda: conv2d(X, W, groups=0), "groups: expected a divisor"),
    "small image": (lambda: conv2d(X[:, :2], W), "2 x 5 is smaller than a window of 3 x 3"),
    "stride": (lambda: conv2d(X, W, stride=(0, 1)), "expected positive sizes"),
    "padding": (lambda: conv2d(X, W, padding=(0, -1)), "expected positive sizes"),
    "bias": (lambda: conv2d(X, W, np.zeros(5, np.float32)), "b: expected shape"),
    "dy of input": (lambda: conv2d_backward_input(X, W, X.shape), "dy: expected shape"),
    "dy of weight": (lambda: conv2d_backward_weight(X, X, W.copy()), "dy: expected shape"),
    "db": (lambda: conv2d_backward_weight(conv2d(X, W), X, W.copy(), np.zeros(5, np.float32)), "db: expected shape"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_one_number_is_a_pair():
    assert (pair(3), pair((1, 2))) == ((3, 3), (1, 2))
