"""Training through CuPy against training through NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_grids import PLAIN, grid_of
from small_data import CASES
from training_job import Trainer, grid, num_ranks

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
if not cupy.is_available():
    pytest.skip("no GPU here", allow_module_level=True)

# TF32 is off by default in CuPy, so both compute in fp32.
RTOL = 1e-3


@pytest.mark.parametrize("ranks", [1, 4])
def test_gpu_follows_cpu(train: Trainer, ranks: int) -> None:
    on_cpu, on_gpu = (train(ranks, "--train.steps", 8, "--run.device", device) for device in ("cpu", "gpu"))
    np.testing.assert_allclose(on_gpu.losses, on_cpu.losses, rtol=RTOL)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("alone", [True, False], ids=["one rank", "a grid"])
def test_families(train: Trainer, tmp_path: Path, name: str, alone: bool) -> None:
    CASES[name].write(tmp_path)
    shape = "1x1x1" if alone else grid_of(name)
    options = (*CASES[name].all_options, *grid(shape), *PLAIN, "--train.steps", 3)
    on_cpu, on_gpu = (train(num_ranks(shape), *options, "--run.device", device) for device in ("cpu", "gpu"))
    np.testing.assert_allclose(on_gpu.losses, on_cpu.losses, rtol=RTOL)
