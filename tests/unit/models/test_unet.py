"""U-Nets: sizes, gradients, the same network in PyTorch, shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradient_agreement import assert_gradients_agree

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.task import TASKS
from lepton_mpi.models.unet import UNet
from lepton_mpi.nn.module import Context


def unet(input_shape: tuple[int, ...], label_shape: tuple[int, ...], num_classes: int = 3, **keys: Any) -> ModelSpec:
    return UNet().declare(
        ModelConfig(family="unet", **keys), TASKS["segmentation"], DataShape(input_shape, num_classes, label_shape)
    )


def images(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape)


def test_what_is_declared() -> None:
    model = unet((3, 16, 24), (16, 24), 5)
    flow = [
        ((3, 16, 24),),
        ((8, 12, 16), (16, 24, 16)),
        ((4, 6, 32), (8, 12, 32), (16, 24, 16)),
        ((4, 6, 64), (8, 12, 32), (16, 24, 16)),
        ((8, 12, 32), (16, 24, 16)),
        ((16, 24, 16),),
        ((16, 24, 5),),
    ]
    assert list(model.boundaries) == flow
    assert (model.output_shape, model.max_stages, model.max_shards, model.batch_statistics) == ((16, 24, 5), 6, 16, True)
    assert model.summary == "unet 3 levels, 16 to 64 channels, images 16x24x3"


@pytest.mark.parametrize("base", [1, 16])
def test_parameter_counts(base: int) -> None:
    def pair(inputs: int, outputs: int) -> int:
        return 9 * inputs * outputs + 9 * outputs**2 + 4 * outputs

    down = pair(3, base) + pair(base, 2 * base)
    up = 9 * 2 * base * base + base + pair(2 * base, base)
    assert unet((8, 8, 3), (8, 8), 7, depth=2, width=base).num_parameters == down + up + 7 * base + 7


@pytest.mark.parametrize(("levels", "shape"), [(1, (2, 3, 5, 1)), (2, (2, 6, 2, 3)), (3, (2, 4, 12, 3))])
def test_gradients_against_central_differences(levels: int, shape: tuple[int, ...], check_gradients: Any) -> None:
    check_gradients(unet(shape[1:], shape[1:3], depth=levels, width=3, channels="last"), images(*shape), places=2)


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_make_no_difference(shards: int, check_shards: Any) -> None:
    check_shards(unet((8, 4, 3), (8, 4), width=5), images(3, 8, 4, 3), shards)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_same_network_in_pytorch(dtype: str, build: Any) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn import functional

    model = unet((3, 8, 12), (8, 12), width=4)
    module, parameters = build(model, dtype=dtype)
    weights = {name: torch.from_numpy(parameter.value.copy()).requires_grad_() for name, parameter in parameters.items()}

    def pair(name: str, x: Any) -> Any:
        for number in (1, 2):
            x = functional.conv2d(x, weights[f"{name}.conv{number}.weight"], padding=1)
            scale, shift = weights[f"{name}.bn{number}.weight"], weights[f"{name}.bn{number}.bias"]
            x = torch.relu(functional.batch_norm(x, None, None, scale, shift, training=True))
        return x

    def there(x: Any) -> Any:
        skips = []
        for level in (0, 1):
            skips.append(pair(f"down.{level}", x))
            x = functional.max_pool2d(skips[-1], 2)
        x = pair("down.2", x)
        for level in (1, 0):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = functional.conv2d(x, weights[f"up.{level}.up.weight"], weights[f"up.{level}.up.bias"], padding=1)
            x = pair(f"up.{level}", torch.cat([x, skips[level]], 1))
        return functional.conv2d(x, weights["head.weight"], weights["head.bias"]).permute(0, 2, 3, 1)

    x = images(3, 3, 8, 12).astype(dtype)
    y, saved = module.forward(x, Context(training=True, num_global=3))
    dy = np.random.default_rng(6).standard_normal(y.shape).astype(dtype)
    module.backward_weight(module.backward_input(dy, saved, want_dx=False)[1])
    expected = there(torch.from_numpy(x))
    expected.backward(torch.from_numpy(dy))
    near = 1e-9 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=near, atol=near)
    trained = {name: parameter.grad for name, parameter in parameters.items() if parameter.block.spec.role == "weight"}
    assert_gradients_agree({name: (grad, weights[name].grad.numpy()) for name, grad in trained.items()}, dtype)


def test_an_empty_batch(build: Any) -> None:
    module, parameters = build(unet((4, 8, 1), (4, 8), width=2, channels="last"))
    y, saved = module.forward(np.empty((0, 4, 8, 1), np.float32), Context(training=True, num_global=4))
    dx, pending = module.backward_input(np.empty((0, 4, 8, 3), np.float32), saved)
    module.backward_weight(pending)
    assert (y.shape, dx.shape) == ((0, 4, 8, 3), (0, 4, 8, 1))
    assert not any(parameter.grad.any() for parameter in parameters.values())


@pytest.mark.parametrize(
    ("shape", "levels", "message"),
    [
        ((30, 32), 3, "divisible by 4, got 30x32: images padded to 32x32 would fit, or model.depth = 2"),
        ((32, 24), 5, "divisible by 16, got 32x24: images padded to 32x32 would fit, or model.depth = 4"),
        ((31, 31), 2, "divisible by 2, got 31x31: images padded to 32x32 would fit, or model.depth = 1"),
    ],
)
def test_sides_that_cannot_be_halved(shape: tuple[int, int], levels: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        unet((*shape, 3), shape, depth=levels)


@pytest.mark.parametrize("label_shape", [(), (8,), (12, 8), (8, 12, 1)])
def test_labels_must_be_a_class_for_every_pixel(label_shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="expected a class for every pixel"):
        unet((8, 12, 3), label_shape)
