"""Planted mistakes: a rank that calls something else, stays away or has a damaged copy is named, and the job ends within 10 s."""

from __future__ import annotations

import re

import pytest
from training_job import SMALL, Job, Trainer, broken_program, grid, num_ranks

LIMIT_S = 10.0  # from the mistake to the end of the job
# Where `broken_program` has the fault, and the call of the step that other ranks wait in.
FAULT, STEP = "<string>:14", "<string>:15"


@pytest.fixture
def strict_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_STRICT", "1")


def message_of(job: Job) -> str:
    """Return the one message of a job that ended in time."""
    assert job.fault_to_end_s < LIMIT_S, job.text
    assert "Traceback" not in job.stderr, job.text
    assert job.stderr.count("lepton_mpi: ") == 1, job.text
    message = (job.folder / "logs" / "failure.txt").read_text()
    assert message.startswith("lepton_mpi: RankMismatchError: "), job.text
    assert message in job.stderr, job.text
    return message


# Statements of the rank that errs, and what the message then says.
SAME_COMMUNICATOR = [
    ("training.network.grid.world.Barrier()", "ranks differ in name, call site: rank 1 calls Barrier over grid.world at"),
    (
        "x = sys.modules['numpy'].zeros(3); training.network.grid.world.Allreduce(x, x + 0)",
        "ranks differ in name, count, dtype, call site: rank 1 calls Allreduce (op SUM) of 3 x float64 over grid.world at",
    ),
]


@pytest.mark.usefixtures("strict_mode")
@pytest.mark.parametrize(("call", "said"), SAME_COMMUNICATOR, ids=["barrier", "sum"])
def test_another_collective_of_the_same_communicator(train: Trainer, call: str, said: str) -> None:
    job = train(3, *SMALL, "--train.steps", 100, program=broken_program(1, 3, call), code=1)
    message = message_of(job)
    assert f"{said} {FAULT}, but ranks 0, 2 call train_step over grid.world at {STEP}" in message
    assert "step 3" in message


@pytest.mark.usefixtures("strict_mode")
@pytest.mark.parametrize(
    ("change", "field", "odd", "usual"),
    [("x[:-1]", "count", "31 x float32", "32 x float32"), ("x.astype('float64')", "dtype", "32 x float64", "32 x float32")],
    ids=["count", "dtype"],
)
def test_another_count_or_type(train: Trainer, change: str, field: str, odd: str, usual: str) -> None:
    fault = f"""
        import lepton_mpi.comm.reduction as reduction, numpy
        x = numpy.zeros(32, numpy.float32)
        reduction.sum_in_rank_order(training.network.grid.data, {change} if training.network.grid.rank == 1 else x)
    """
    job = train(3, *SMALL, "--train.steps", 100, program=broken_program(range(3), 3, fault), code=1)
    message = message_of(job)
    assert f"ranks differ in {field}: rank 1 calls sum_in_rank_order of {odd} over grid.data at <string>:16" in message
    assert f"but ranks 0, 2 call sum_in_rank_order of {usual} over grid.data at <string>:16" in message


@pytest.mark.usefixtures("strict_mode")
def test_a_collective_of_another_communicator(train: Trainer) -> None:
    fault = broken_program(1, 3, "training.network.grid.shard.Barrier()")
    message = message_of(train(4, *SMALL, *grid("2x1x2"), "--train.steps", 100, program=fault, code=1))
    waits = r"rank 1 waits for \d+\.\d s in Barrier over grid\.shard at " + FAULT
    stays = r"rank 1 waited \d s in Barrier over grid\.shard at " + FAULT + r", where rank 0 did not come: rank 0 waits for "
    assert re.search(f"{waits}|{stays}", message), message
    assert f"train_step over grid.world at {STEP}" in message


@pytest.mark.usefixtures("strict_mode")
def test_a_rank_that_never_comes(train: Trainer) -> None:
    job = train(3, *SMALL, "--train.steps", 100, program=broken_program(1, 3, "time.sleep(60)"), code=1)
    message = message_of(job)
    assert f"train_step over grid.world at {STEP}, where rank 1 did not come: rank 1 has called nothing for " in message
    assert re.search(r"since [\w.]+ over grid\.\w+ at lepton_mpi/\w+/\w+\.py:\d+", message), message


@pytest.mark.usefixtures("strict_mode")
def test_a_message_that_never_comes(train: Trainer) -> None:
    fault = """
        import numpy
        from lepton_mpi.comm.waiting import wait
        if training.network.grid.stage_index:
            wait(training.network.grid.stage.Irecv(numpy.empty(7), 0, 5))
    """
    job = train(2, *SMALL, *grid("1x2x1"), "--train.steps", 100, program=broken_program([0, 1], 3, fault), code=1)
    message = message_of(job)
    received = r"receive from rank 0, tag 5 of 7 x float64 over grid\.stage at <string>:17"
    assert re.search(f"rank 1 waited 5 s to {received}: rank 0 waits for|rank 1 waits for .* s in {received}", message), message


@pytest.mark.timeout_s(200)
@pytest.mark.parametrize("shape", ["2x1x1", "1x2x1", "1x1x2", "2x2x1"])
def test_correct_training_goes_through(train: Trainer, monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    options = (*SMALL, *grid(shape), "--grid.ranks_per_node", 1, "--train.steps", 4, "--train.evaluate_every_steps", 2)
    checks = ("--checkpoint.every_steps", 2, "--train.check_replicas_every", 1, "--train.ema_decay", 0.9)
    plain = train(num_ranks(shape), *options, *checks)
    monkeypatch.setenv("LEPTON_STRICT", "1")
    job = train(num_ranks(shape), *options, *checks)
    assert job.sha256 == plain.sha256
    assert job.losses == plain.losses
    if shape == "2x2x1":
        resumed = train(num_ranks(shape), *options, *checks, "--train.steps", 6, folder=job.folder)
        assert resumed.summary["step"] == 6


FLIP = "training.network.memory.values.view('uint32')[5] ^= 1 << 20"
CHECKED = (*SMALL, "--train.steps", 100, "--train.check_replicas_every", 2)


def test_a_bit_of_the_weights_of_one_node(train: Trainer) -> None:
    message = message_of(train(3, *CHECKED, "--grid.ranks_per_node", 1, program=broken_program(1, 3, FLIP), code=1))
    assert "replicas differ after step 4: parameter layers.0.weight" in message
    assert "the copy of rank 1 (data 1, stage 0, shard 0) differs from 2 others" in message


def test_a_bit_of_the_optimizer_state_of_one_node(train: Trainer) -> None:
    flip = "training.network.memory.slots['second_moment'].view('uint32')[5] ^= 1 << 20"
    message = message_of(train(2, *CHECKED, "--grid.ranks_per_node", 1, program=broken_program(1, 3, flip), code=1))
    assert "optimizer state second_moment of layers.0.weight: the copies of rank 0" in message
    assert "rank 1 (data 1, stage 0, shard 0) differ, and none is that of most" in message


def test_a_bit_of_a_parameter_that_shards_hold_whole(train: Trainer) -> None:
    flip = """
        m = training.network.memory
        whole = [i for i, block in enumerate(m.layout.blocks) if block.spec.split_dim is None][0]
        m.layout.view(whole, m.values).view("uint32")[2] ^= 1 << 20
    """
    message = message_of(train(3, *CHECKED, *grid("1x1x3"), program=broken_program(2, 3, flip), code=1))
    assert re.search(r"parameter layers\.\d\.bias: the copy of rank 2 \(data 0, stage 0, shard 2\) differs from 2 others", message)


def test_damage_at_the_end_is_found(train: Trainer) -> None:
    options = (*SMALL, "--train.steps", 4, "--train.check_replicas_every", 100, "--grid.ranks_per_node", 1)
    message = message_of(train(2, *options, program=broken_program(1, 3, FLIP), code=1))
    assert "replicas differ after step 4: parameter layers.0.weight" in message
