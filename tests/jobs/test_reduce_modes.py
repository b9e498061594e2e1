"""Compressed gradient exchange between nodes: training goes as without it, and all nodes keep the same weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

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

WRITE_RESIDUAL = """
    import numpy as np
    np.save(Path(sys.argv[-1], f"residual-{training.network.grid.rank}.npy"), training.exchange.residual)
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


def test_what_feedback_owes_survives_a_change_of_the_grid(train: Trainer) -> None:
    """The residuals of a checkpoint are what a job on another grid owes, to the bit, and what it writes again."""
    options = (*SMALL, "--optimizer.lr", 0.01, "--reduce.bucket_mib", 0.01, "--reduce.mode", "int4", "--grid.ranks_per_node", 1)
    first = train(4, *options, *grid("4x1x1"), "--train.steps", 12)
    owed = residuals(first.checkpoint(12).parent)
    assert owed
    assert any(values.any() for values in owed.values())
    program = broken_program(range(2), 12, WRITE_RESIDUAL)
    moved = train(2, *options, *grid("2x1x1"), "--train.steps", 13, folder=first.folder, program=program)
    kept = sum(np.load(moved.folder / f"residual-{rank}.npy") for rank in range(2))
    flat = np.concatenate([owed[name].reshape(-1) for name in sorted(owed)])
    assert np.sort(kept[kept != 0]).tobytes() == np.sort(flat[flat != 0]).tobytes()
    assert np.isfinite(moved.losses).all()


@pytest.mark.parametrize(("mode", "ranks", "shape"), [("topk", 3, "3x1x1"), ("powersgd", 2, "2x1x1"), ("sign1", 2, "2x1x1")])
def test_modes_with_feedback_learn_and_go_on_to_the_bit(train: Trainer, mode: str, ranks: int, shape: str) -> None:
    small = ("--optimizer.lr", 0.01, "--reduce.bucket_mib", 0.01, "--reduce.topk_share", 0.1, "--reduce.powersgd_rank", 2)
    options = (*SMALL, *grid(shape), *small, "--grid.ranks_per_node", 1, "--reduce.mode", mode, "--reduce.warmup_share", 0.01)
    whole = train(ranks, *options, "--train.steps", NUM_STEPS, "--train.check_replicas_every", 6)
    exact = train(ranks, *options, "--reduce.mode", "exact", "--train.steps", NUM_STEPS)
    assert whole.sha256 != exact.sha256
    assert whole.losses[-1] < 0.7 * whole.losses[0]
    # The decay, and so the end of the warm-up, follows from the epochs.
    first = train(ranks, *options, "--train.steps", 10)
    second = train(ranks, *options, "--train.steps", NUM_STEPS, folder=first.folder)
    assert second.sha256 == whole.sha256
    moved = train(1, *options, *grid("1x1x1"), "--train.steps", NUM_STEPS + 1, folder=first.folder)
    assert np.isfinite(moved.losses).all()


def test_auto_says_what_it_chose_and_trains(train: Trainer) -> None:
    options = (*OPTIONS, "--grid.ranks_per_node", 2, "--reduce.mode", "auto")
    job = train(4, *options)
    assert job.losses[-1] < 0.5 * job.losses[0]
    log = (job.folder / "logs" / "rank-0000.log").read_text()
    assert "begins with" in log
    assert "predicted: exact" in log
    exact = train(4, *OPTIONS, "--grid.ranks_per_node", 2)
    only = train(4, *options, "--reduce.allow", "exact")
    assert only.sha256 == exact.sha256


def residuals(checkpoints: Path) -> dict[str, np.ndarray]:
    """Return the residual of every weight in a checkpoint."""
    with CheckpointReader(checkpoints) as reader:
        found = {path: info.shape for path, info in reader.tensors.items() if path.startswith("/residual/")}
        return {path: reader.read(path, (0,) * len(shape), shape) for path, shape in found.items()}
