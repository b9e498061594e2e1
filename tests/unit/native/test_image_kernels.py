"""What the image and batch-norm kernels refuse: sizes that would read or write outside of an array."""

import numpy as np
import pytest

from lepton_mpi import native

ONE = (1, 1)


def images(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def im2col(x=None, size=2 * 9 * 9 * 3, images_=(0, 2), rows=(0, 3), channels=(0, 3), kernel=(3, 3), stride=ONE, padding=(0, 0)):
    x = images(2, 5, 5, 3) if x is None else x
    native.im2col(x, np.zeros(size, np.float32), images_, rows, channels, kernel, stride, padding, ONE)


@pytest.mark.parametrize("change", [
    {"x": np.zeros((2, 5, 5), np.float32)},
    {"size": 7},
    {"images_": (0, 3)},
    {"images_": (2, 1)},
    {"rows": (-1, 2)},
    {"rows": (0, 4)},
    {"channels": (1, 4)},
    {"kernel": (0, 3)},
    {"kernel": (6, 3)},
    {"stride": (1, 0)},
    {"padding": (-1, 0)},
], ids=str)  # fmt: skip
def test_im2col_refuses(change):
    im2col()  # fits
    with pytest.raises(ValueError, match=r"images|columns|kernel|padding|window"):
        im2col(**change)


def test_col2im_refuses_columns_of_another_size():
    with pytest.raises(ValueError, match="columns: expected 486 values, received 5"):
        native.col2im_add(images(5), images(2, 5, 5, 3), (0, 2), (0, 3), (0, 3), (3, 3), ONE, (0, 0), ONE)


@pytest.mark.parametrize(("padding", "outputs"), [((0, 0), 3), ((2, 0), 4)], ids=["size", "padding"])
def test_max_pool_refuses(padding, outputs):
    places = np.zeros((1, outputs, 2, 1), np.int32)
    with pytest.raises(ValueError, match=r"y and places|half of the kernel"):
        native.max_pool2d(images(1, 4, 4, 1), images(*places.shape), places, (2, 2), (2, 2), padding)


@pytest.mark.parametrize("place", [-1, 16])
def test_max_pool_backward_refuses_places_outside(place):
    with pytest.raises(ValueError, match="one is outside"):
        native.max_pool2d_backward_add(images(1, 1, 1, 1), np.full((1, 1, 1, 1), place, np.int32), images(1, 4, 4, 1))


@pytest.mark.parametrize("shapes", [((1, 1, 1, 2), (1, 1, 1, 2)), ((2, 1, 1, 1), (2, 1, 1, 1)), ((1, 1, 1, 1), (1, 2, 1, 1))])
def test_max_pool_backward_refuses_shapes(shapes):
    dy, places = shapes
    with pytest.raises(ValueError, match="dy and"):
        native.max_pool2d_backward_add(images(*dy), np.zeros(places, np.int32), images(1, 4, 4, 1))


def test_batch_norm_kernels_refuse():
    rows, wide, two, three = images(4, 3), images(4, 2), np.zeros(2), np.zeros(3)
    narrow, fitting = two.astype(np.float32), three.astype(np.float32)
    for call, message in [
        (lambda: native.channel_moments(images(4), three, three), "expected 2 dims"),
        (lambda: native.channel_moments(images(0, 3), three, three.copy()), "at least one row"),
        (lambda: native.channel_moments(rows, two, three), "mean: expected 3 values, received 2"),
        (lambda: native.channel_affine(rows, fitting, fitting, narrow, rows.copy()), "shift: expected 3 values"),
        (lambda: native.channel_affine(rows, fitting, fitting, fitting, wide), "y: expected the shape of x"),
        (lambda: native.channel_gradient_sums(wide, rows, three, three, three), "dy: expected the shape of x"),
        (lambda: native.channel_gradient(rows, rows, fitting, fitting, fitting, narrow, rows), "shift: expected 3 values"),
        (lambda: native.channel_gradient(rows, rows, fitting, fitting, fitting, fitting, wide), "dx: expected the shape of x"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("name", ["depthwise_conv2d", "depthwise_backward_input_add", "depthwise_backward_weight_add"])
@pytest.mark.parametrize(("weight", "windows", "message"), [(8, 4, "one value for each tap"), (18, 5, "one value for each window")])
def test_depthwise_refuses(name, weight, windows, message):
    with pytest.raises(ValueError, match=message):
        getattr(native, name)(images(1, 4, 4, 2), images(weight), images(windows * 2), (3, 3), ONE, (0, 0), ONE)
