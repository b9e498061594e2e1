"""Residual networks: sizes, gradients, the same network in PyTorch, shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradient_agreement import assert_gradients_agree

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.resnet import ResNet
from lepton_mpi.models.task import TASKS
from lepton_mpi.nn.module import Context


def resnet(input_shape: tuple[int, ...], num_classes: int = 10, **keys: Any) -> ModelSpec:
    return ResNet().declare(ModelConfig(family="resnet", **keys), TASKS["classification"], DataShape(input_shape, num_classes))


def images(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize(
    ("depth", "num_classes", "count"),
    # The first is Keras' and others' count for option B; the last two are torchvision's.
    [(20, 10, 272_474), (32, 10, 466_906), (56, 10, 855_770), (18, 1000, 11_689_512), (50, 1000, 25_557_032)],
)
def test_parameter_counts(depth: int, num_classes: int, count: int) -> None:
    assert resnet((3, 224, 224), num_classes, depth=depth).num_parameters == count


@pytest.mark.parametrize(("shape", "layers"), [((32, 32, 3), 20), ((1, 64, 64), 20), ((65, 65), 18), ((3, 224, 224), 18)])
def test_depth_follows_the_size_of_the_images(shape: tuple[int, ...], layers: int) -> None:
    assert resnet(shape).summary.startswith(f"resnet {layers} layers, {16 if layers == 20 else 64} to ")


def test_what_is_declared() -> None:
    model = resnet((3, 32, 32))
    assert model.boundaries[0] == ((3, 32, 32),)
    assert model.boundaries[1] == ((32, 32, 16),)
    assert [shapes[0] for shapes in model.boundaries[4::3]] == [(32, 32, 16), (16, 16, 32), (8, 8, 64)]
    assert (model.output_shape, model.max_stages, model.max_shards, model.batch_statistics) == ((10,), 11, 16, True)
    assert resnet((224, 224, 3), depth=50).boundaries[1] == ((56, 56, 64),)
    assert sum(resnet((224, 224, 3), 1000, depth=50).costs) == pytest.approx(
        4.1e9, rel=0.01
    )  # as table 1 says: 3.8 without shortcuts
    undecayed = {spec.name.split(".")[-2].rstrip("123") for spec in model.parameters if not spec.decay and spec.role == "weight"}
    assert undecayed == {"bn", "", "fc"}  # norms, those of shortcuts (downsample.1), the last bias


def test_a_number_for_each_value_in_regression() -> None:
    data = DataShape((8, 8), 0, (3,))
    assert ResNet().declare(ModelConfig(), TASKS["regression"], data).output_shape == (3,)


@pytest.mark.parametrize(("depth", "shape"), [(20, (2, 9, 7, 3)), (18, (2, 33, 35, 1)), (50, (2, 3, 33, 33))])
def test_gradients_against_central_differences(depth: int, shape: tuple[int, ...], check_gradients: Any) -> None:
    check_gradients(resnet(shape[1:], 3, depth=depth, width=2), images(*shape), places=1)


@pytest.mark.parametrize(("depth", "shape", "shards"), [(20, (3, 8, 8, 3), 2), (20, (3, 8, 8, 3), 3), (50, (2, 33, 33, 3), 3)])
def test_shards_make_no_difference(depth: int, shape: tuple[int, ...], shards: int, check_shards: Any) -> None:
    check_shards(resnet(shape[1:], 3, depth=depth, width=5), images(*shape), shards)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("depth", "dtype"), [(20, "float64"), (20, "float32"), (18, "float64"), (50, "float64")])
def test_the_same_network_in_pytorch(depth: int, dtype: str, training: bool, build: Any) -> None:
    torch = pytest.importorskip("torch")
    from torch_resnet import TorchResNet

    width = 16 if depth == 20 else 8
    x = images(6, 3, 17, 17).astype(dtype)
    module, parameters = build(resnet(x.shape[1:], 7, depth=depth, width=width), dtype=dtype)
    other = TorchResNet(depth, 3, width, 7).to(getattr(torch, dtype)).train(training)
    values = {name: torch.from_numpy(parameter.value.copy()) for name, parameter in parameters.items()}
    missing, unexpected = other.load_state_dict(values, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)

    y, saved = module.forward(x, Context(training=training, num_global=len(x)))
    dy = np.random.default_rng(6).standard_normal(y.shape).astype(dtype)
    dx, pending = module.backward_input(dy, saved)
    module.backward_weight(pending)
    x_there = torch.from_numpy(x).requires_grad_()
    y_there = other(x_there)
    y_there.backward(torch.from_numpy(dy))

    near = 1e-9 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(y, y_there.detach().numpy(), rtol=near, atol=near)
    for name, running in other.named_buffers():
        if not name.endswith("num_batches_tracked"):
            after = parameters[name].value + parameters[name].grad
            np.testing.assert_allclose(after, running.numpy(), rtol=near, atol=near, err_msg=name)
    pairs = {name: (parameters[name].grad, weight.grad.numpy()) for name, weight in other.named_parameters()}
    assert_gradients_agree({**pairs, "input": (dx, x_there.grad.numpy())}, dtype)


def test_an_empty_batch(build: Any) -> None:
    module, parameters = build(resnet((8, 8, 1), 3, width=2))
    y, saved = module.forward(np.empty((0, 8, 8, 1), np.float32), Context(training=True, num_global=4))
    dx, pending = module.backward_input(np.empty((0, 3), np.float32), saved)
    module.backward_weight(pending)
    assert (y.shape, dx.shape) == ((0, 3), (0, 8, 8, 1))
    assert not any(parameter.grad.any() for parameter in parameters.values())


def test_initial_weights_suit_relu(build: Any) -> None:
    _, parameters = build(resnet((32, 32, 3)))
    weight = parameters["layer3.2.conv2.weight"].value
    assert weight.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)
    assert (parameters["layer3.2.bn2.weight"].value == 1).all()


@pytest.mark.parametrize(
    ("keys", "shape", "message"),
    [
        ({"depth": 19}, (32, 32, 3), "model.depth: a resnet has 20, 32 or 56 layers"),
        ({"channels": "first"}, (64,), "expected images of shape"),
        ({}, (5, 5, 5), "set model.channels to"),
    ],
)
def test_sizes_that_do_not_fit(keys: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resnet(shape, **keys)
