"""Convolutions and batch norms divided over shards give what the whole ones give, forward and backward."""

import numpy as np
import pytest
from alone import build_alone, make_parameters
from threads_as_ranks import run_threads

from lepton_mpi.nn.batch_norm import BatchNorm2d
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.conv2d import Conv2d
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.parameter import Parameter, cut_parameter
from lepton_mpi.nn.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d
from lepton_mpi.nn.relu import ReLU
from lepton_mpi.nn.upsample import Upsample

CHAINS = {
    "pair": (
        Conv2d("a", 3, 5, 3, padding=1, split="column"),
        BatchNorm2d("n", 5, split=True),
        ReLU("r", split=True),
        Conv2d("b", 5, 4, 3, 2, split="row"),
    ),
    "depthwise between": (
        Conv2d("a", 3, 5, 1, bias=False, split="column"),
        Conv2d("d", 5, 5, 3, padding=1, groups=5, split="depthwise"),
        Conv2d("b", 5, 4, 1, split="row"),
    ),
    "gathered": (Conv2d("a", 3, 7, 3, split="column", gather=True),),
    "pooled": (
        Conv2d("a", 3, 5, 1, split="column"),
        MaxPool2d("m", 3, 1, 1, split=True),
        Upsample("u", split=True),
        AvgPool2d("v", 2, split=True),
        Conv2d("b", 5, 4, 1, split="row"),
        GlobalAvgPool("g"),
    ),
}


def one_step(module, x):
    y, saved = module.forward(x, Context(training=True, num_global=len(x)))
    dx, pending = module.backward_input(np.cos(np.arange(y.size)).reshape(y.shape), saved)
    module.backward_weight(pending)
    return y, dx


@pytest.mark.parametrize("shards", [2, 3])
@pytest.mark.parametrize("layers", CHAINS.values(), ids=CHAINS)
def test_shards_together_are_the_whole(layers, shards):
    chain = Chain("chain", layers)
    assert chain.divided is False
    x = np.random.default_rng(2).standard_normal((2, 6, 5, 3))
    whole_module, whole = build_alone(chain)
    y, dx = one_step(whole_module, x)

    def work(place):
        blocks = {}
        for name, parameter in make_parameters(chain).items():
            block = cut_parameter(parameter.block.spec, shards, place.shard)
            here = tuple(slice(start, start + n) for start, n in zip(block.starts, block.shape, strict=True))
            blocks[name] = (Parameter(block, parameter.value[here].copy(), np.zeros(block.shape)), here)
        module = chain.build({name: parameter for name, (parameter, _) in blocks.items()}, place)
        return *one_step(module, x), blocks

    for shard_y, shard_dx, blocks in run_threads(work, shards=shards):
        np.testing.assert_allclose(shard_y, y, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(shard_dx, dx, rtol=1e-10, atol=1e-10)
        for name, (parameter, here) in blocks.items():
            assert parameter.grad.any()
            np.testing.assert_allclose(parameter.grad, whole[name].grad[here], rtol=1e-9, atol=1e-10)
