"""All families and losses, forward and backward, on arrays that refuse what CuPy's do, against NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import strict_device

from lepton_mpi.config.schema import ModelConfig, TrainConfig
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.registry import choose_family_task
from lepton_mpi.nn.chain import ChainModule
from lepton_mpi.nn.losses import BayesianPersonalisedRanking, MeanSquaredError, SigmoidCrossEntropy, SoftmaxCrossEntropy
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.parameter import Parameter, cut_parameter, initial_values
from lepton_mpi.nn.place import Alone
from lepton_mpi.train.objective import make_loss

TEXT = DataShape((7,), num_classes=11)
WORDS = {"width": 16, "num_layers": 2, "num_heads": 4}
IMAGES = DataShape((3, 8, 8), num_classes=5)
PAIRS = DataShape((2,), id_counts=(9, 6))
MODELS: dict[str, tuple[dict[str, Any], DataShape]] = {
    "linear": ({"family": "linear"}, IMAGES),
    "linear, values": ({"family": "linear", "task": "regression"}, DataShape((3,), 0, (2,))),
    "mlp": ({"family": "mlp", "hidden_sizes": (6, 5)}, IMAGES),
    "resnet": ({"family": "resnet", "depth": 20, "width": 4}, IMAGES),
    "unet": ({"family": "unet", "depth": 2, "width": 4}, DataShape((3, 8, 8), 3, (8, 8))),
    "gpt": ({"family": "gpt", **WORDS, "dropout": 0.2}, TEXT),
    "llama": ({"family": "llama", **WORDS, "num_kv_heads": 2}, TEXT),
    "bert": ({"family": "bert", "task": "masked_language_model", **WORDS, "dropout": 0.2}, TEXT),
    "bert, classes": ({"family": "bert", "task": "classification", **WORDS}, DataShape((7,), 3, id_counts=(11,) * 7)),
    "recommender": ({"family": "recommender", "task": "regression", "embedding_size": 3, "hidden_sizes": (6, 5)}, PAIRS),
    "recommender, yes or no": ({"family": "recommender", "task": "binary", "interaction": "product"}, PAIRS),
    "recommender, ranking": ({"family": "recommender", "task": "ranking", "interaction": "product"}, PAIRS),
}


def declare(name: str) -> ModelSpec:
    keys, data = MODELS[name]
    config = ModelConfig(**keys)
    family, task = choose_family_task(config)
    return family.declare(config, task, data)


def draw(model: ModelSpec, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels."""
    random = np.random.default_rng(3)
    columns = 3 if model.task.name == "ranking" else model.data.input_shape[0]
    if model.input_kind == "values":
        x = random.standard_normal((batch, *model.data.input_shape)).astype(np.float32)
    elif model.family == "recommender":
        x = np.stack([random.integers(0, model.data.id_counts[min(column, 1)], batch) for column in range(columns)], axis=1)
    else:
        x = random.integers(0, 11, (batch, columns))
    shape = (batch, *model.output_shape)
    if isinstance(make_loss(model, TrainConfig()), SoftmaxCrossEntropy):
        return x, random.integers(0, shape[-1], shape[:-1])
    return x, random.random(shape, np.float32)


def run(model: ModelSpec, xp: Any, x: np.ndarray, target: np.ndarray, training: bool) -> dict[str, Any]:
    """Return everything that one pass makes."""
    parameters = {}
    for spec in model.parameters:
        block = cut_parameter(spec, 1, 0)
        value = xp.asarray(initial_values(block, 1) + np.float32(0.01))
        parameters[spec.name] = Parameter(block, value, xp.zeros_like(value))
    module = ChainModule([layer.build(parameters, Alone(seed=1)) for layer in model.layers])
    x, target = xp.asarray(x), xp.asarray(target)
    mask = x != 3 if model.input_kind == "ids" and model.family == "bert" else None
    context = Context(training, step=2, first_row=4, num_global=2 * max(len(x), 1), key_mask=mask)
    output, saved = module.forward(x, context)
    result = make_loss(model, TrainConfig())(output, target, 0.5)
    sums = np.array([result.loss, result.weight, result.num_correct, result.num_counted])
    dx, pending = module.backward_input(result.gradient, saved, want_dx=model.input_kind == "values")
    module.backward_weight(pending)
    made = {"output": output, "gradient": result.gradient, **{name: parameter.grad for name, parameter in parameters.items()}}
    return {"sums": sums, **made, **({} if dx is None else {"dx": dx})}


def assert_agree(device: Any, received: dict[str, Any], expected: dict[str, Any]) -> None:
    np.testing.assert_allclose(received.pop("sums"), expected.pop("sums"), rtol=1e-4)
    for name, array in expected.items():
        assert isinstance(received[name], strict_device.ndarray), f"{name} has left the device"
        assert received[name].dtype == array.dtype
        scale = max(float(np.abs(array).max(initial=0)), 1e-3)
        np.testing.assert_allclose(device.asnumpy(received[name]), array, rtol=1e-3, atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("batch", "training"), [(3, True), (3, False), (0, True)], ids=["training", "inference", "empty"])
def test_same_as_on_the_host(name: str, batch: int, training: bool, device: Any) -> None:
    model = declare(name)
    x, target = draw(model, batch)
    assert_agree(device, run(model, device, x, target, training), run(model, np, x, target, training))


LOSSES = [
    (SoftmaxCrossEntropy((1.0, 0.0, 2.5), 0.2), (4, 3), np.array([0, 2, 1, -100])),
    (SigmoidCrossEntropy(), (3, 1), np.array([0, 1, 1], np.float32)),
    (MeanSquaredError(), (3, 1), np.array([0, 1, 1], np.float32)),
    (BayesianPersonalisedRanking(), (5, 2), np.zeros(5, np.float32)),
]


@pytest.mark.parametrize(("loss", "shape", "target"), LOSSES, ids=lambda value: type(value).__name__)
def test_losses(loss: Any, shape: tuple[int, ...], target: np.ndarray, device: Any) -> None:
    output = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected, received = loss(output, target, 0.5), loss(device.asarray(output), device.asarray(target), 0.5)
    np.testing.assert_allclose(device.asnumpy(received.gradient), expected.gradient, rtol=1e-5, atol=1e-6)
    for name in ("loss", "weight", "num_correct", "num_counted"):
        assert type(getattr(received, name)) is type(getattr(expected, name))
        assert getattr(received, name) == pytest.approx(getattr(expected, name), rel=1e-5)
