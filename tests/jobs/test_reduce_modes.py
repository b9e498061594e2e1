"""Compressed gradient exchange between nodes: training goes as without it, and all nodes keep the same weights."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from training_job import SMALL, Job, Trainer, broken_program, grid

from lepton_mpi.checkpoint.reader import CheckpointReader

NUM_STEPS = 24
# Several buckets, so that their order counts too.
OPTIONS = (*SMALL, *grid("4x1x1"), "--train.steps", NUM_STEPS, "--optimizer.lr", 0.01, "--reduce.bucket_mib", 0.01)
# bf16 keeps 8 bits of each value, int8 about 7 of the largest in a block. Measured for the worst of the steps: 0.019 and 0.030.
RELATIVE = {"bf16": 0.04, "int8": 0.06}
WRITE_REPLICA = """
    weights = bytes(training.network.memory.values.data)
    Path(sys.argv[-1], f"replica-{training.network.grid.rank}").write_text(hashlib.sha256(weights).hexdigest())
    """


def checkpoint_sha256(job: Job) -> str:
    """Return the hash of the parameters in the last checkpoint: little-endian fp32, in the order of their names."""
    digest = hashlib.sha256()
    with CheckpointReader(job.checkpoint(NUM_STEPS).parent) as reader:
        for path, info in sorted(reader.tensors.items()):
            if path.startswith("/param/"):
                digest.update(reader.read(path, (0,) * len(info.shape), info.shape).astype("<f4").tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("ranks_per_node", [1, 2])
def test_lossy_modes_train_like_the_exact_one(train: Trainer, ranks_per_node: int) -> None:
    exact = train(4, *OPTIONS, "--grid.ranks_per_node", ranks_per_node)
    assert exact.losses[-1] < 0.5 * exact.losses[0]
    for mode in ("bf16", "int8"):
        program = broken_program(range(4), NUM_STEPS - 1, WRITE_REPLICA)
        job = train(4, *OPTIONS, "--grid.ranks_per_node", ranks_per_node, "--reduce.mode", mode, program=program)
        assert job.sha256 != exact.sha256  # the mode was at work
        np.testing.assert_allclose(job.losses, exact.losses, rtol=RELATIVE[mode])
        assert len({(job.folder / f"replica-{rank}").read_text() for rank in range(4)}) == 1
        assert checkpoint_sha256(job) == job.sha256


def test_inside_a_node_nothing_is_lossy(train: Trainer) -> None:
    exact, lossy = (train(2, *SMALL, *grid("2x1x1"), "--train.steps", 6, "--reduce.mode", mode) for mode in ("exact", "int8"))
    assert lossy.sha256 == exact.sha256
