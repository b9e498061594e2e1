"""Image layers on one rank: gradients, declared shapes, empty batches, what they refuse."""

import numpy as np
import pytest
from alone import assert_gradients, build_alone

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.batch_norm import BatchNorm2d
from lepton_mpi.nn.conv2d import Conv2d
from lepton_mpi.nn.flatten import Flatten
from lepton_mpi.nn.image_input import ImageInput, image_geometry
from lepton_mpi.nn.initial import Constant, he_uniform
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d
from lepton_mpi.nn.relu import ReLU
from lepton_mpi.nn.upsample import Upsample

CASES = [
    (Conv2d("c", 3, 2, 3, padding=1), (2, 4, 5, 3)),
    (Conv2d("c", 3, 2, (1, 2), (2, 1), (0, 1), (1, 2), bias=False), (2, 4, 5, 3)),
    (Conv2d("c", 4, 2, 3, groups=2), (1, 4, 5, 4)),
    (Conv2d("c", 3, 3, 3, 2, 1, groups=3, split="depthwise"), (1, 4, 5, 3)),
    (MaxPool2d("p", 2), (2, 4, 5, 3)),
    (MaxPool2d("p", 3, 2, 1), (2, 4, 5, 3)),
    (AvgPool2d("p", (2, 3), 1, (1, 0)), (2, 4, 5, 3)),
    (GlobalAvgPool("p"), (2, 3, 5, 3)),
    (Upsample("u"), (2, 3, 2, 3)),
    (Upsample("u", 3), (1, 1, 2, 1)),
    (ReLU("r"), (2, 7)),
    (Flatten("f"), (2, 3, 2, 3)),
    (ImageInput("i", (3, 4, 5), "first"), (2, 3, 4, 5)),
    (ImageInput("i", (4, 5, 3), "last"), (2, 4, 5, 3)),
    (ImageInput("i", (4, 5), "none"), (2, 4, 5)),
    (BatchNorm2d("b", 3), (2, 2, 3, 3)),
    (BatchNorm2d("b", 3), (5, 3)),
]
IDS = [type(layer).__name__ for layer, _ in CASES]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("layer", "shape"), CASES, ids=IDS)
def test_gradients_against_central_differences(layer, shape, training):
    x = np.random.default_rng(3).permutation(np.prod(shape)).reshape(shape) / 10 - 1.33  # no two equal, none 0
    assert_gradients(layer, x, Context(training=training, num_global=shape[0]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("layer", "shape"), CASES, ids=IDS)
def test_no_samples(layer, shape, dtype):
    module, parameters = build_alone(layer, dtype)
    x = np.zeros((0, *shape[1:]), dtype)
    y, saved = module.forward(x, Context(training=True))
    assert y.shape == (0, *layer.output((shape[1:],))[0])
    dx, pending = module.backward_input(np.zeros_like(y), saved)
    module.backward_weight(pending)
    assert (dx.shape, dx.dtype, y.dtype) == (x.shape, dtype, dtype)
    assert not any(parameter.grad.any() for parameter in parameters.values())


@pytest.mark.parametrize(("layer", "shape"), CASES, ids=IDS)
def test_float32_agrees_and_inputs_stay_as_they_were(layer, shape):
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    results = []
    for dtype in (np.float32, np.float64):
        module, parameters = build_alone(layer, dtype)
        images = x.astype(dtype)
        images.flags.writeable = False
        y, saved = module.forward(images, Context(training=True, num_global=shape[0]))
        dy = np.random.default_rng(4).standard_normal(y.shape).astype(np.float32).astype(dtype)
        y.flags.writeable = dy.flags.writeable = False
        dx, pending = module.backward_input(dy, saved)
        module.backward_weight(pending)
        assert y.dtype == dx.dtype == dtype
        results.append([y, dx, *(parameter.grad for parameter in parameters.values())])
    for single, double in zip(*results, strict=True):
        np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-5)


def test_what_a_convolution_declares():
    layer = Conv2d("stem", 3, 8, (3, 5), 2, split="column")
    weight, bias = layer.parameters
    assert (weight.name, weight.shape, weight.split_dim, weight.decay) == ("stem.weight", (8, 3, 3, 5), 0, True)
    assert (bias.name, bias.shape, bias.split_dim, bias.decay) == ("stem.bias", (8,), 0, False)
    assert weight.initial == he_uniform(45) and bias.initial == Constant(0.0)
    assert layer.output(((9, 9, 3),)) == ((4, 3, 8),) and layer.cost(((9, 9, 3),)) == 12 * 8 * 45
    row = Conv2d("c", 4, 2, 1, split="row", initial=Constant(1.0))
    assert [spec.split_dim for spec in row.parameters] == [1, None] and row.weight_spec.initial == Constant(1.0)
    assert Conv2d("c", 4, 2, 1, bias=False).parameters == (Conv2d("c", 4, 2, 1).weight_spec,)


@pytest.mark.parametrize(
    ("layer", "divided"),
    [
        (Conv2d("c", 4, 4, 1), False),
        (Conv2d("c", 4, 4, 1, split="column"), True),
        (Conv2d("c", 4, 4, 1, split="column", gather=True), False),
        (Conv2d("c", 4, 4, 1, split="row"), False),
        (Conv2d("c", 4, 4, 1, groups=4, split="depthwise"), True),
        *(
            (kind("x", *sizes, split=True), True)
            for kind, sizes in [(ReLU, ()), (MaxPool2d, (2,)), (GlobalAvgPool, ()), (Upsample, ())]
        ),
        (BatchNorm2d("b", 3, split=True), True),
        (BatchNorm2d("b", 3), False),
    ],
)
def test_which_outputs_are_divided(layer, divided):
    assert layer.divided is divided


@pytest.mark.parametrize(("layer", "shape", "cost"), [
    (BatchNorm2d("b", 3), (4, 5, 3), 120),
    (MaxPool2d("p", 2), (4, 5, 3), 2 * 2 * 3 * 4),
    (GlobalAvgPool("p"), (4, 5, 3), 60),
    (ReLU("r"), (4, 5, 3), 0),
])  # fmt: skip
def test_costs(layer, shape, cost):
    assert layer.cost((shape,)) == cost


REFUSED = {
    "channels": (Conv2d("c", 3, 2, 3), (4, 4, 2), "layer c: expected samples of shape"),
    "small image": (Conv2d("c", 3, 2, 3), (2, 4, 3), "layer c: an image of 2 x 4 is smaller"),
    "vector": (MaxPool2d("p", 2), (4,), "layer p: expected samples of shape"),
    "window": (AvgPool2d("p", 5), (4, 4, 1), "layer p: an image of 4 x 4"),
    "padding": (MaxPool2d("p", 2, 2, 2), (4, 4, 1), "layer p: a padding"),
    "global": (GlobalAvgPool("p"), (4,), "layer p: expected"),
    "enlarged": (Upsample("u"), (4, 4), "layer u: expected"),
    "features": (BatchNorm2d("b", 3), (4, 4, 2), "layer b: expected"),
    "input": (ImageInput("i", (4, 4), "none"), (4, 5), "layer i: expected"),
}


@pytest.mark.parametrize(("layer", "shape", "message"), REFUSED.values(), ids=REFUSED)
def test_samples_that_do_not_fit_are_refused(layer, shape, message):
    with pytest.raises(ConfigError, match=message):
        layer.output((shape,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "cannot be divided into 3 groups"),
        ({"groups": 0}, "cannot be divided into 0 groups"),
        ({"groups": 2, "split": "column"}, "a column split needs groups = 1"),
        ({"groups": 2, "split": "row"}, "a row split needs groups = 1"),
        ({"groups": 2, "split": "depthwise"}, "one group for each channel"),
    ],
)
def test_groups_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"layer c: 4 input and 6 output channels.*{message}"):
        Conv2d("c", 4, 6, 1, **options)


@pytest.mark.parametrize(
    ("shape", "channels", "geometry"),
    [
        ((28, 28), "auto", (28, 28, 1, "none")),
        ((8, 5), "none", (8, 5, 1, "none")),
        ((3, 32, 30), "auto", (32, 30, 3, "first")),
        ((32, 30, 4), "auto", (32, 30, 4, "last")),
        ((1, 7, 9), "auto", (7, 9, 1, "first")),
        ((3, 5, 3), "last", (3, 5, 3, "last")),
        ((13, 5, 7), "first", (5, 7, 13, "first")),
    ],
)
def test_where_the_channels_are(shape, channels, geometry):
    assert image_geometry(shape, channels) == geometry


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((3, 5, 3), "auto"), ((5, 6, 7), "auto"), ((5,), "auto"), ((2, 3, 4, 5), "auto"), ((5, 6), "first"), ((5, 6, 3), "none")],
)
def test_unclear_channels_are_refused(shape, channels):
    with pytest.raises(ConfigError, match=r"model\.channels"):
        image_geometry(shape, channels)
