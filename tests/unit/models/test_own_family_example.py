"""The family of examples/own_family, which docs/extending.md explains, and that the page shows the files as they are."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.registry import find_family
from lepton_mpi.models.task import TASKS
from lepton_mpi.nn.module import Context

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "own_family"
sys.path[:0] = [str(EXAMPLE), str(ROOT / "tests" / "unit" / "nn")]

from alone import assert_gradients, build_alone  # noqa: E402
from squeeze_mlp import Squeeze, squeeze, squeeze_backward_input, squeeze_backward_weight  # noqa: E402

DIGITS = DataShape((3, 3), num_classes=4)


def declare(**keys: Any) -> ModelSpec:
    config = ModelConfig("squeeze_mlp:SqueezeMlp", **{"width": 5, "intermediate_size": 7, "num_layers": 2} | keys)
    return find_family(config.family).declare(config, TASKS["classification"], DIGITS)


def samples(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, 3, 3))


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 7), (0, 5)])
def test_squeeze_gradients(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    assert_gradients(Squeeze("squeeze", shape[-1]), x, Context(training=True, num_global=max(shape[0], 1)))


def test_running_mean_moves_by_the_mean_of_the_global_batch() -> None:
    x = np.random.default_rng(0).standard_normal((6, 2, 5))
    module, parameters = build_alone(Squeeze("squeeze", 5, momentum=0.25))
    for rows, first in ((x[:2], 0), (x[2:2], 2), (x[2:], 2)):  # as micro-batches and data ranks have them
        y, saved = module.forward(rows, Context(training=True, first_row=first, num_global=6))
        module.backward_weight(module.backward_input(np.ones_like(y), saved)[1])
    running_mean = parameters["squeeze.running_mean"]
    moved = running_mean.value + running_mean.grad
    np.testing.assert_allclose(moved, 0.75 * running_mean.value + 0.25 * x.mean(axis=(0, 1)), rtol=1e-12)


def test_shapes_that_do_not_fit() -> None:
    x, slope = np.ones((2, 3)), np.ones(3)
    with pytest.raises(ValueError, match=r"slope: expected shape \(3\), received \(4,\)"):
        squeeze(x, np.ones(4))
    with pytest.raises(ValueError, match="dy: expected shape"):
        squeeze_backward_input(np.ones((3, 3)), x, slope)
    with pytest.raises(ValueError, match="dslope: expected shape"):
        squeeze_backward_weight(x, x, slope, np.ones(4))


def test_family_gradients(check_gradients: Any) -> None:
    check_gradients(declare(), samples(5))


@pytest.mark.parametrize("shards", [2, 3])
def test_family_shards(check_shards: Any, shards: int) -> None:
    check_shards(declare(), samples(5), shards)


def test_parameters_and_options() -> None:
    model = declare(options=("slope=0.5", "momentum=0.2"))
    assert [spec.name for spec in model.parameters if spec.name.startswith("blocks.0")] == [
        "blocks.0.first.weight",
        "blocks.0.first.bias",
        "blocks.0.squeeze.slope",
        "blocks.0.squeeze.running_mean",
        "blocks.0.second.weight",
        "blocks.0.second.bias",
    ]
    assert (model.max_stages, model.max_shards, model.output_shape) == (4, 7, (4,))
    layers = model.layers[1].body.layers  # type: ignore[attr-defined]
    assert (layers[1].slope, layers[1].momentum) == (0.5, 0.2)


@pytest.mark.parametrize("option", ["speed=1", "slope=fast", "slope=0", "momentum=inf"])
def test_options_that_do_not_fit(option: str) -> None:
    with pytest.raises(ConfigError, match=f"model.options: .* got '{option}'"):
        declare(options=(option,))


def test_onnx_form(build: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from lepton_mpi.interop.onnx_export import export_onnx

    model, x = declare(), samples(5).astype(np.float32)
    module, parameters = build(model)
    for number, parameter in enumerate(parameters.values()):
        parameter.value[...] += 0.1 * np.random.default_rng(number).standard_normal(parameter.value.shape).astype(np.float32)
    path = tmp_path / "model.onnx"
    export_onnx(model, Normalisation.identity((3, 3)), lambda name: parameters[name].value, path, 7)
    (y,) = onnxruntime.InferenceSession(path).run(None, {"input": x})
    np.testing.assert_allclose(y, module.forward(x, Context())[0], rtol=1e-4, atol=1e-5)


def test_page_shows_the_files() -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    explained, tests = page.split("\n## Tests\n")
    shown = "".join(re.findall(r"```python\n(.*?)```", explained, re.DOTALL))
    assert without_blank_lines(shown) == without_blank_lines((EXAMPLE / "squeeze_mlp.py").read_text())
    assert re.findall(r"```toml\n(.*?)```", explained, re.DOTALL) == [(EXAMPLE / "config.toml").read_text()]
    excerpts = re.findall(r"```python\n(.*?)```", tests, re.DOTALL)
    assert excerpts
    for excerpt in excerpts:
        assert excerpt in Path(__file__).read_text()


def without_blank_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
