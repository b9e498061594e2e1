"""Each shard's part of a replicated array: the adjoint of a gathering."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.divide import Divide, DivideModule
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.move import Move
from lepton_mpi.nn.place import Alone


class GatherThree(Move):
    """The second of three shards, whose neighbours hold zeros and ones."""

    def forward(self, x: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([np.zeros((len(x), 2)), x, np.ones((len(x), 1))], axis=-1)

    def adjoint(self, dy: NDArray[Any]) -> NDArray[Any]:
        return dy[..., 2:4]


@pytest.mark.parametrize("batch", [0, 3])
def test_own_features_forward_and_all_of_them_backward(batch: int) -> None:
    module = DivideModule(GatherThree())
    x = np.random.default_rng(0).standard_normal((batch, 5))
    y, saved = module.forward(x, Context())
    np.testing.assert_array_equal(y, x[:, 2:4])
    dx, pending = module.backward_input(y, saved)
    np.testing.assert_array_equal(dx, np.concatenate([np.zeros((batch, 2)), y, np.ones((batch, 1))], axis=1))
    module.backward_weight(pending)
    assert module.backward_input(y, saved, want_dx=False)[0] is None


def test_one_shard_keeps_everything() -> None:
    layer, x = Divide("divide", 5), np.ones((2, 7, 5))
    y, _ = layer.build({}, Alone()).forward(x, Context())
    np.testing.assert_array_equal(y, x)
    assert layer.divided
    assert layer.output(((7, 5),)) == ((7, 5),)


def test_another_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer divide: expected samples of shape"):
        Divide("divide", 5).output(((4,),))
