"""The same mathematics on every grid: loss curves agree to rounding."""

from __future__ import annotations

import numpy as np
import pytest
from training_job import SMALL, Trainer, grid, num_ranks

STEPS = ("--train.steps", 10, "--train.evaluate_every_epochs", 0)
# float32 sums in another order differ in the last bits (2^-24 = 6e-8), which AdamW magnifies where a gradient is near 0. Measured
# after ten steps: 2e-8 for the small network, 5e-8 for the default one. A sample counted twice, or a sum that
# misses a part, makes 1e-3 and more.
RELATIVE = 2e-6


def curves(train: Trainer, shapes: list[str], *options: object) -> dict[str, list[float]]:
    found = {}
    for shape in shapes:
        job = train(num_ranks(shape), *STEPS, *options, *grid(shape))
        data, stages, shards = map(int, shape.split("x"))
        assert job.summary["grid"] == {"data": data, "stages": stages, "shards": shards}
        found[shape] = job.losses
    return found


def assert_equal_to_rounding(found: dict[str, list[float]]) -> None:
    reference = found["1x1x1"]
    assert len(reference) == 10
    assert reference[-1] < 0.98 * reference[0]  # it moves, so equality says something
    for shape, losses in found.items():
        np.testing.assert_allclose(losses, reference, rtol=RELATIVE, err_msg=shape)


@pytest.mark.timeout_s(200)
def test_small_network(train: Trainer) -> None:
    shapes = ["1x1x1", "2x1x1", "3x1x1", "1x2x1", "1x1x2", "2x2x2", "4x2x2"]
    assert_equal_to_rounding(curves(train, shapes, *SMALL, "--optimizer.lr", 0.01, "--data.max_shift", 1))


@pytest.mark.timeout_s(200)
def test_default_network(train: Trainer) -> None:
    assert_equal_to_rounding(curves(train, ["1x1x1", "3x1x1", "2x2x2"]))


@pytest.mark.timeout_s(200)
def test_several_nodes(train: Trainer) -> None:
    options = (*SMALL, "--optimizer.lr", 0.01, "--reduce.bucket_mib", 0.01)  # several buckets
    found = curves(train, ["1x1x1"], *options)
    for ranks_per_node in (1, 2, 3):  # 3: nodes of 3 ranks and of 1
        found[f"nodes of {ranks_per_node}"] = curves(train, ["4x1x1"], *options, "--grid.ranks_per_node", ranks_per_node)["4x1x1"]
    assert_equal_to_rounding(found)
