"""Training through CuPy against training through NumPy."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
if not cupy.is_available():
    pytest.skip("no GPU here", allow_module_level=True)

Mpirun = Callable[..., "subprocess.CompletedProcess[str]"]


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.parametrize("ranks", [1, 4])
def test_gpu_follows_cpu(mpirun: Mpirun, tmp_path: Path, ranks: int) -> None:
    for device in ("cpu", "gpu"):
        folder = tmp_path / device
        arguments = ("-m", "lepton_mpi.train", "--train.steps", 8, "--run.device", device, "--run.dir", folder)
        job = mpirun(ranks, *arguments, cwd=tmp_path)
        assert job.returncode == 0, job.stdout + job.stderr
    # TF32 is off by default in CuPy, so both compute in fp32.
    np.testing.assert_allclose(losses(tmp_path / "gpu"), losses(tmp_path / "cpu"), rtol=1e-3)
