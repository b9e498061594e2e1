"""Both ways to write a checkpoint hold the same, and one reads what the other wrote."""

from __future__ import annotations

import numpy as np
import pytest
from training_job import SMALL, Job, Trainer, grid

from lepton_mpi.checkpoint.drivers import mpio_obstacle
from lepton_mpi.checkpoint.reader import CheckpointReader


def read_checkpoint(job: Job, step: int) -> tuple[dict[str, str], dict[str, tuple[str, bytes]]]:
    """Return the attributes, as text, and tensors of a checkpoint."""
    with CheckpointReader(job.checkpoint(step).parent) as reader:
        tensors = {path: reader.read(path, (0,) * len(info.shape), info.shape) for path, info in reader.tensors.items()}
        attributes = {name: str(np.asarray(value).tolist()) for name, value in reader.attributes.items()}
    return attributes, {path: (f"{values.dtype}{values.shape}", values.tobytes()) for path, values in tensors.items()}


def test_drivers_write_the_same(train: Trainer) -> None:
    obstacle = mpio_obstacle()
    if obstacle:
        pytest.skip(f"no mpio driver: {obstacle}")
    options = (*SMALL, *grid("2x2x1"), "--checkpoint.every_steps", 2, "--optimizer.schedule", "constant")
    direct = train(4, *options, "--train.steps", 4, "--checkpoint.driver", "direct")
    mpio = train(4, *options, "--train.steps", 6, "--checkpoint.driver", "mpio")
    assert "(direct)" in direct.stdout
    assert "(mpio)" in mpio.stdout
    for step in (2, 4):
        attributes, tensors = read_checkpoint(direct, step)
        assert read_checkpoint(mpio, step) == (attributes, tensors)
        assert attributes["step"] == str(step)
        assert {path.split("/")[1] for path in tensors} == {"param", "opt", "normalisation"}
    resumed = train(4, *options, "--train.steps", 6, "--checkpoint.driver", "mpio", folder=direct.folder)
    assert "resumed from step-000000004" in resumed.stdout
    assert resumed.sha256 == mpio.sha256


def test_direct_driver_works_everywhere(train: Trainer) -> None:
    options = (*SMALL, "--checkpoint.driver", "direct", "--optimizer.schedule", "constant")
    whole = train(3, *options, "--train.steps", 4)
    first = train(3, *options, "--train.steps", 2)
    second = train(3, *options, "--train.steps", 4, folder=first.folder)
    assert second.sha256 == whole.sha256
    assert read_checkpoint(second, 4) == read_checkpoint(whole, 4)


def test_mpio_that_cannot_be_is_refused(train: Trainer) -> None:
    if not mpio_obstacle():
        pytest.skip("this h5py can use mpio")
    job = train(2, *SMALL, "--checkpoint.driver", "mpio", "--train.steps", 1, code=2)
    assert len(job.messages) == 1
    assert 'checkpoint.driver = "mpio" is impossible' in job.messages[0]
