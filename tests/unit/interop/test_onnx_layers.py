"""Every layer in ONNX makes what it makes here; layers of users, registered and not."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_cases import TEXT
from onnx_runs import STEP, check_model, random_inputs, random_normalisation, run_file, values_model

import lepton_mpi.nn
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.errors import ConfigError
from lepton_mpi.interop.onnx_export import build_graph, export_onnx
from lepton_mpi.interop.onnx_graph import OnnxGraph
from lepton_mpi.interop.onnx_layers import export_layer
from lepton_mpi.models.family import ModelSpec
from lepton_mpi.models.task import TASKS
from lepton_mpi.nn.activation import Gelu, Silu
from lepton_mpi.nn.attention import Attention, Rotary
from lepton_mpi.nn.batch_norm import BatchNorm2d
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.conv2d import Conv2d
from lepton_mpi.nn.dropout import Dropout
from lepton_mpi.nn.embedding import Embedding, LearnedPositions
from lepton_mpi.nn.feed_forward import FeedForward
from lepton_mpi.nn.flatten import Flatten
from lepton_mpi.nn.layer import Layer, Shapes
from lepton_mpi.nn.layer_norm import LayerNorm
from lepton_mpi.nn.linear import Linear
from lepton_mpi.nn.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d
from lepton_mpi.nn.relu import ReLU
from lepton_mpi.nn.residual import Residual
from lepton_mpi.nn.rms_norm import RMSNorm
from lepton_mpi.nn.skip import Down, Up
from lepton_mpi.nn.swiglu import SwiGLU
from lepton_mpi.nn.tanh import Tanh
from lepton_mpi.nn.upsample import Upsample
from lepton_mpi.ops.rotary import Llama3Scaling

IMAGES = (9, 7, 4)
SEQUENCE = (7, 12)
LAYERS: dict[str, tuple[tuple[int, ...], tuple[Layer, ...]]] = {
    "conv2d": (IMAGES, (Conv2d("c", 4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),)),
    "depthwise": (IMAGES, (Conv2d("c", 4, 4, 3, padding=1, groups=4, bias=False),)),
    "pools": (IMAGES, (MaxPool2d("m", 3, (2, 1), 1), AvgPool2d("a", (3, 2), (1, 2), (1, 0)))),
    "global pool": (IMAGES, (ReLU("r"), GlobalAvgPool("g"))),
    "upsample": (IMAGES, (Upsample("u", 3), Tanh("t"))),
    "flatten after a convolution": (IMAGES, (Conv2d("c", 4, 3, 2), Flatten("f"), Linear("l", 144, 5, relu=True))),
    "linear on images": (IMAGES, (Conv2d("c", 4, 3, 2), Linear("l", 3, 5), Gelu("g", True))),
    "residual of both forms": (IMAGES, (Residual("r", Conv2d("c", 4, 4, 3, padding=1)), Silu("s"))),
    "batch norm of images": (IMAGES, (BatchNorm2d("n", 4, epsilon=1e-2),)),
    "batch norm of sequences": (SEQUENCE, (BatchNorm2d("n", 12, epsilon=1e-2),)),
    "batch norm of vectors": ((12,), (BatchNorm2d("n", 12),)),
    "skips of sequences": (
        SEQUENCE,
        (Down("d", Linear("a", 12, 5), Linear("b", 5, 3)), Up("u", Linear("c", 3, 4), Linear("e", 9, 2))),
    ),
    "norms": (SEQUENCE, (LayerNorm("l", 12, 1e-3, bias=False), Dropout("d", 0.5), LayerNorm("m", 12), RMSNorm("r", 12, 1e-2))),
    "gelu": (SEQUENCE, (Gelu("g"), Silu("s"), Tanh("t"))),
    "swiglu of vectors": ((12,), (SwiGLU("s", 12, 7),)),
    "feed-forward": (SEQUENCE, (FeedForward("f", 12, 7, "relu", bias=False), FeedForward("g", 12, 5, "gelu_tanh"))),
    "attention": (SEQUENCE, (Attention("a", 12, 3, bias=False), Chain("c", ()), Attention("b", 12, 2, causal=True, head_dim=5))),
    "rotary": (
        SEQUENCE,
        (Attention("a", 12, 6, 2, head_dim=4, causal=True, rotary=Rotary(50.0, Llama3Scaling(4.0, 1.0, 2.0, 16)), out_bias=False),),
    ),
}


@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
def test_layers(tmp_path: Path, tools: Any, case: tuple[tuple[int, ...], tuple[Layer, ...]]) -> None:
    model = values_model(case[0], Linear("first", case[0][-1], case[0][-1]), *case[1])
    inputs = [random_inputs(model, batch) for batch in (1, 3)]
    check_model(tools, model, tmp_path / "m.onnx", random_normalisation(model), *inputs)


def test_token_layers(tmp_path: Path, tools: Any) -> None:
    """Positions that begin later, and causal attention among padding: the first sample sees nothing at all."""
    layers = (Embedding("e", 37, 12, padding=1), LearnedPositions("p", 11, 12, offset=2), Attention("a", 12, 3, causal=True))
    model = ModelSpec("test", TASKS["language_model"], TEXT, layers, "ids", pad_id=1)
    ids = random_inputs(model, 3)
    ids[1, :3] = 1
    found = check_model(tools, model, tmp_path / "m.onnx", Normalisation.identity(), ids)
    assert [node.op_type for node in found.graph.node].count("Softmax") == 1
    assert np.isfinite(run_file(tmp_path / "m.onnx", ids)).all()


@dataclass(frozen=True)
class Doubling(Layer):
    """Stands for a layer of a user."""

    def build(self, parameters: Any, place: Any) -> Any:
        raise NotImplementedError


class Misfit(Doubling):
    """One whose nodes are wrong."""


class Unknown(Doubling):
    """One that nobody registered, and which is no `Doubling` at work."""

    def build(self, parameters: Any, place: Any) -> Any:
        raise NotImplementedError


class Renamed(ReLU):
    """The same at work as its base."""


class Changed(ReLU):
    """Not the same at work as its base."""

    def build(self, parameters: Any, place: Any) -> Any:
        raise NotImplementedError


@export_layer.register
def export_doubling(layer: Doubling, graph: OnnxGraph, x: str, shapes: Shapes) -> str:
    assert shapes == ((3,),)
    return graph.add("Mul", x, graph.constant(2.0))


@export_layer.register
def export_misfit(layer: Misfit, graph: OnnxGraph, x: str, shapes: Shapes) -> str:
    return graph.add("MatMul", x, graph.constant(np.ones((5, 2))))


def test_all_layers_of_the_package_are_registered() -> None:
    kinds = set()
    for info in pkgutil.iter_modules(lepton_mpi.nn.__path__, "lepton_mpi.nn."):
        kinds |= {kind for kind in vars(importlib.import_module(info.name)).values() if inspect.isclass(kind)}
    layers = {kind for kind in kinds if issubclass(kind, Layer) and not inspect.isabstract(kind)}
    assert len(layers) > 25
    assert layers <= set(export_layer.registry)


EYE = {"l.weight": np.eye(3, dtype=np.float32), "l.bias": np.ones(3, np.float32)}


@pytest.mark.parametrize("layer", [Unknown("mine"), Chain("c", (Changed("mine"),)), Residual("r", ReLU("s"), Unknown("mine"))])
def test_layer_that_is_not_registered(tmp_path: Path, layer: Layer) -> None:
    gathered: list[str] = []
    with pytest.raises(ConfigError, match=r"layer mine: .* class (Unknown|Changed): .*@export_layer\.register"):
        export_onnx(values_model((3,), layer), Normalisation.identity(), gathered.append, tmp_path / "m.onnx", STEP)
    assert gathered == []


def test_class_that_nothing_is_known_of() -> None:
    class Other(Layer):
        build = Doubling.build

    with pytest.raises(ConfigError, match=r"class .*Other: .*register"):
        build_graph(values_model((3,), Other("mine")), Normalisation.identity())


def test_derived_layer_that_builds_the_same_module() -> None:
    nodes = build_graph(values_model((3,), Renamed("r")), Normalisation.identity()).nodes
    assert [node.operator for node in nodes] == ["Relu", "Identity"]


def test_layer_of_a_user(tmp_path: Path) -> None:
    model = values_model((3,), Linear("l", 3, 3), Doubling("mine"))
    export_onnx(model, Normalisation.identity(), EYE.get, tmp_path / "m.onnx", STEP)
    assert run_file(tmp_path / "m.onnx", np.array([[1, 2, 3]], np.float32)).tolist() == [[4, 6, 8]]


def test_nodes_that_do_not_fit(tmp_path: Path) -> None:
    model = values_model((3,), Linear("l", 3, 3), Misfit("mine"))
    with pytest.raises(ConfigError, match=r"nodes of the model's layers do not fit together: .*MatMul"):
        export_onnx(model, Normalisation.identity(), EYE.get, tmp_path / "m.onnx", STEP)
    assert list(tmp_path.iterdir()) == []
