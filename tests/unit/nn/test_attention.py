"""The attention layer: central differences, PyTorch's own, and shards that add up to the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.attention import Attention, AttentionModule, Rotary
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.move import AddParts, Move, Replicate
from lepton_mpi.nn.parameter import Parameter, cut_parameter
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.rotary import Llama3Scaling


@dataclass(frozen=True)
class Apart(Place):
    """A shard whose partial sums the test adds itself."""

    def replicate(self, length: int = 0, unit: int = 1) -> Move:
        return Replicate()

    def sum(self, length: int = 0, unit: int = 1) -> Move:
        return AddParts()

    def gather(self, length: int, unit: int = 1) -> Move:
        raise AssertionError("attention gathers nothing")

    def gather_over_data(self, x: Any, num_rows: int = 0) -> Any:
        raise AssertionError("attention asks no other data rank")


def build(layer: Attention, shards: int = 1, shard: int = 0, dtype: type = np.float64, **place: Any) -> AttentionModule:
    """Build one shard of the layer; the values follow from the name and the global element."""
    parameters = {}
    for number, spec in enumerate(layer.parameters):
        whole = 0.4 * np.random.default_rng(number).standard_normal(spec.shape).astype(dtype)
        block = cut_parameter(spec, shards, shard)
        value = whole[tuple(slice(s, s + n) for s, n in zip(block.starts, block.shape, strict=True))].copy()
        parameters[spec.name] = Parameter(block, value, np.zeros_like(value))
    return layer.build(parameters, Apart(shards, shard, **place))


def parameters_of(module: AttentionModule) -> list[Parameter]:
    pairs = ((module.q, module.q_bias), (module.k, module.k_bias), (module.v, module.v_bias), (module.out, module.out_bias))
    return [parameter for pair in pairs for parameter in pair if parameter is not None]


def run(module: AttentionModule, x: np.ndarray, dy: np.ndarray, context: Context) -> tuple[np.ndarray, np.ndarray]:
    y, saved = module.forward(x, context)
    dx, pending = module.backward_input(dy, saved)
    module.backward_weight(pending)
    return y, dx


def inputs(batch: int, length: int, width: int, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(9)
    mask = random.random((batch, length)) < 0.8
    mask[:, :1] = True
    return (
        random.standard_normal((batch, length, width)).astype(dtype),
        random.standard_normal((batch, length, width)).astype(dtype),
        mask,
    )


LAYERS = [
    Attention("a", 6, 3),
    Attention("a", 6, 3, causal=True, bias=False, dropout=0.3),
    Attention("a", 5, 4, num_kv_heads=2, head_dim=4, causal=True, out_bias=False, rotary=Rotary()),
    Attention("a", 6, 3, num_kv_heads=1, bias=False, out_bias=False, rotary=Rotary(100.0, Llama3Scaling(2.0)), dropout=0.2),
]


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_against_central_differences(layer: Attention) -> None:
    x, dy, mask = inputs(2, 5, layer.width)
    context = Context(training=True, step=4, first_row=3, key_mask=mask)
    module = build(layer, seed=1)
    kept = x.copy(), dy.copy()
    _, dx = run(module, x, dy, context)
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(dy, kept[1])
    step = 1e-6
    for array, gradient in [(x, dx), *((p.value, p.grad) for p in parameters_of(module))]:
        for place in list(np.ndindex(array.shape))[:: 1 + array.size // 25]:
            ends = []
            for sign in (1, -1):
                array[place] += sign * step
                ends.append((module.forward(x, context)[0] * dy).sum())
                array[place] -= sign * step
            assert gradient[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "shards"), [(6, 6, 4), (6, 6, 6), (6, 3, 2), (6, 3, 3), (4, 4, 2), (8, 2, 2)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_shards_add_up_to_the_whole(num_heads: int, num_kv_heads: int, shards: int, bias: bool) -> None:
    layer = Attention(
        "a", 7, num_heads, num_kv_heads, head_dim=2, causal=True, bias=bias, out_bias=bias, rotary=Rotary(), dropout=0.3
    )
    assert all(spec.max_shards in (None, num_kv_heads) for spec in layer.parameters)
    x, dy, mask = inputs(3, 5, 7)
    context = Context(training=True, step=2, first_row=1, key_mask=mask)
    whole = build(layer, seed=1)
    y, dx = run(whole, x, dy, context)
    parts = [build(layer, shards, shard, seed=1) for shard in range(shards)]
    results = [run(part, x, dy, context) for part in parts]
    total = sum(result[0] for result in results)
    if bias:
        total = total - (shards - 1) * whole.out_bias.value  # after the sum over shards it is added once
    np.testing.assert_allclose(total, y, atol=1e-12)
    np.testing.assert_allclose(sum(result[1] for result in results), dx, atol=1e-12)
    for part in parts:
        for one, other in zip(parameters_of(part), parameters_of(whole), strict=True):
            here = tuple(slice(s, s + n) for s, n in zip(one.block.starts, one.block.shape, strict=True))
            np.testing.assert_allclose(one.grad, other.grad[here], atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_against_pytorch(causal: bool) -> None:
    torch = pytest.importorskip("torch")
    layer = Attention("a", 24, 3, causal=causal)
    module = build(layer, dtype=np.float32)
    x, dy, mask = inputs(2, 11, 24, np.float32)
    y, dx = run(module, x, dy, Context(key_mask=mask))
    theirs = torch.nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.tensor(np.concatenate([p.value for p in (module.q, module.k, module.v)])))
        theirs.in_proj_bias.copy_(torch.tensor(np.concatenate([p.value for p in (module.q_bias, module.k_bias, module.v_bias)])))
        theirs.out_proj.weight.copy_(torch.tensor(module.out.value))
        theirs.out_proj.bias.copy_(torch.tensor(module.out_bias.value))
    x_torch = torch.tensor(x, requires_grad=True)
    beyond = torch.ones(11, 11, dtype=torch.bool).triu(1) if causal else None
    expected, _ = theirs(x_torch, x_torch, x_torch, key_padding_mask=torch.tensor(~mask), attn_mask=beyond, need_weights=False)
    expected.backward(torch.tensor(dy))
    gradients = [
        (y, expected.detach()),
        (dx, x_torch.grad),
        (np.concatenate([p.grad for p in (module.q, module.k, module.v)]), theirs.in_proj_weight.grad),
        (np.concatenate([p.grad for p in (module.q_bias, module.k_bias, module.v_bias)]), theirs.in_proj_bias.grad),
        (module.out.grad, theirs.out_proj.weight.grad),
        (module.out_bias.grad, theirs.out_proj.bias.grad),
    ]
    for one, other in gradients:
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-4)


def test_against_llama() -> None:
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(hidden_size=24, num_attention_heads=6, num_key_value_heads=3, rope_theta=500.0)
    config._attn_implementation = "sdpa"
    theirs = llama.LlamaAttention(config, layer_idx=0).eval()
    layer = Attention("a", 24, 6, 3, causal=True, bias=False, out_bias=False, rotary=Rotary(500.0))
    module = build(layer, dtype=np.float32)
    with torch.no_grad():
        for name, parameter in zip(("q_proj", "k_proj", "v_proj", "o_proj"), parameters_of(module), strict=True):
            getattr(theirs, name).weight.copy_(torch.tensor(parameter.value))
    x, dy, _ = inputs(2, 11, 24, np.float32)
    x_torch = torch.tensor(x, requires_grad=True)
    turns = llama.LlamaRotaryEmbedding(config)(x_torch, torch.arange(11)[None])
    expected = theirs(x_torch, position_embeddings=turns, attention_mask=None)[0]
    expected.backward(torch.tensor(dy))
    y, dx = run(module, x, dy, Context())
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dx, x_torch.grad.numpy(), rtol=1e-4, atol=1e-4)
    for name, parameter in zip(("q_proj", "k_proj", "v_proj", "o_proj"), parameters_of(module), strict=True):
        np.testing.assert_allclose(parameter.grad, getattr(theirs, name).weight.grad.numpy(), rtol=1e-3, atol=1e-4)


def test_dropout_only_in_training_and_by_step_and_row() -> None:
    layer = Attention("a", 6, 3, dropout=0.5)
    module = build(layer, seed=1)
    x, _, _ = inputs(3, 5, 6)
    plain = build(Attention("a", 6, 3)).forward(x, Context(training=True))[0]
    np.testing.assert_array_equal(module.forward(x, Context())[0], plain)
    first = module.forward(x, Context(training=True, step=1, first_row=4))[0]
    assert np.abs(first - plain).max() > 1e-3
    for other in (Context(training=True, step=2, first_row=4), Context(training=True, step=1, first_row=5)):
        assert np.abs(first - module.forward(x, other)[0]).max() > 1e-3
    np.testing.assert_allclose(module.forward(x[1:], Context(training=True, step=1, first_row=5))[0], first[1:], atol=1e-12)
    assert np.abs(first - build(layer, seed=2).forward(x, Context(training=True, step=1, first_row=4))[0]).max() > 1e-3


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_empty_batch(layer: Attention, dtype: type) -> None:
    module = build(layer, dtype=dtype)
    x = np.empty((0, 5, layer.width), dtype)
    y, dx = run(module, x, x, Context(training=True, key_mask=np.empty((0, 5), bool)))
    assert y.shape == dx.shape == x.shape
    assert not any(p.grad.any() for p in parameters_of(module))


def test_gradients_add_up_and_no_dx_on_request() -> None:
    layer = LAYERS[2]
    module = build(layer)
    x, dy, mask = inputs(2, 5, layer.width)
    context = Context(key_mask=mask)
    run(module, x, dy, context)
    once = [p.grad.copy() for p in parameters_of(module)]
    dx, pending = module.backward_input(dy, module.forward(x, context)[1], want_dx=False)
    module.backward_weight(pending)
    assert dx is None
    for parameter, grad in zip(parameters_of(module), once, strict=True):
        np.testing.assert_allclose(parameter.grad, 2 * grad)


def test_declaration() -> None:
    layer = Attention("h.0.attn", 12, 4, 2, q_name="query", k_name="key", v_name="value", out_name="out.dense")
    assert [(p.name, p.shape, p.split_dim, p.split_unit, p.decay) for p in layer.parameters] == [
        ("h.0.attn.query.weight", (12, 12), 0, 6, True),
        ("h.0.attn.query.bias", (12,), 0, 6, False),
        ("h.0.attn.key.weight", (6, 12), 0, 3, True),
        ("h.0.attn.key.bias", (6,), 0, 3, False),
        ("h.0.attn.value.weight", (6, 12), 0, 3, True),
        ("h.0.attn.value.bias", (6,), 0, 3, False),
        ("h.0.attn.out.dense.weight", (12, 12), 1, 6, True),
        ("h.0.attn.out.dense.bias", (12,), None, 1, False),
    ]
    assert layer.output(((5, 12),)) == ((5, 12),)
    assert layer.cost(((5, 12),)) == 5 * (2 * 12 * 12 + 2 * 6 * 12) + 2 * 5 * 5 * 12
    assert not layer.divided
    with pytest.raises(ConfigError, match=r"h\.0\.attn"):
        layer.output(((5, 13),))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 10, "num_heads": 4}, "model.num_heads"),
        ({"width": 10, "num_heads": 0}, "model.num_heads"),
        ({"width": 12, "num_heads": 6, "num_kv_heads": 4}, "model.num_kv_heads"),
        ({"width": 12, "num_heads": 6, "num_kv_heads": -1}, "model.num_kv_heads"),
        ({"width": 9, "num_heads": 3, "rotary": Rotary()}, "head_dim"),
    ],
)
def test_heads_that_do_not_divide(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Attention("a", **sizes)
