"""A thread that moves messages between nodes: the same bits as without it, and jobs that end as they do without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_job import FAILED, SMALL, Trainer, broken_program, grid, only_message, processes_of

LIMIT_S = 10.0  # from the failure to the end of all processes
NODES = ("--grid.ranks_per_node", 1, "--reduce.bucket_mib", 0.01)
LONG = (*SMALL, *NODES, "--reduce.progress_thread", "on", "--train.epochs", 100_000, "--checkpoint.every_steps", 0)
COUNT_THREADS = 'Path(sys.argv[-1], f"threads-{training.network.grid.rank}").write_text(str(len(os.listdir("/proc/self/task"))))'


@pytest.mark.parametrize(("mode", "shard"), [("exact", "node"), ("int4", "node"), ("int8", "data")])
def test_the_thread_leaves_the_weights_as_they_are(train: Trainer, mode: str, shard: str) -> None:
    options = (*SMALL, *NODES, *grid("3x1x1"), "--train.steps", 20, "--reduce.mode", mode, "--optimizer.shard", shard)
    jobs = {
        thread: train(3, *options, "--reduce.progress_thread", thread, program=broken_program(range(3), 10, COUNT_THREADS))
        for thread in ("off", "on")
    }
    assert jobs["on"].sha256 == jobs["off"].sha256
    for thread, how in (("off", "start and finish alone"), ("on", "a thread")):
        text = (jobs[thread].folder / "logs" / "rank-0000.log").read_text()
        assert text.count("gradient exchange: ") == 1
        assert f"3 node(s), {mode}, moved by {how}\n" in text
    for rank in range(3):
        off, on = (int((jobs[thread].folder / f"threads-{rank}").read_text()) for thread in ("off", "on"))
        assert on == off + 1, "no thread was at work"


@pytest.mark.parametrize(
    "fault",
    [
        "raise RuntimeError('injected')",
        "training.exchange.start_from(0); raise RuntimeError('injected')",  # the thread waits for payloads then
    ],
)
def test_an_exception_on_one_rank_ends_the_job(train: Trainer, fault: str) -> None:
    job = train(3, *LONG, program=broken_program(1, 7, fault), code=FAILED)
    assert job.fault_to_end_s < LIMIT_S, job.text
    assert len(job.messages) == 1, job.text
    assert "RuntimeError: injected" in job.stderr
    assert processes_of(job) == []


def test_an_exception_on_all_ranks_ends_mpi_in_order(train: Trainer) -> None:
    fault = "training.exchange.start_from(0); 1 / 0"
    job = train(3, *LONG, program=broken_program(range(3), 3, fault), code=1)
    assert job.fault_to_end_s < LIMIT_S, job.text
    assert len(job.messages) == 1, job.text
    assert job.stderr.count("ZeroDivisionError: division by zero") == 1
    assert processes_of(job) == []


def test_a_rank_that_stays_away_is_named(train: Trainer) -> None:
    options = ("--reduce.timeout_s", 1, "--reduce.bucket_mib", 4)  # no piece of a bucket is empty
    job = train(3, *LONG, *options, program=broken_program(2, 4, "time.sleep(60)"), code=FAILED)
    assert job.fault_to_end_s < LIMIT_S, job.text
    assert "StallError: the gradient exchange did not move for 1 s, waiting for data node(s) 2" in job.stderr
    assert processes_of(job) == []


def test_a_killed_rank_ends_the_job(train: Trainer) -> None:
    kill = "threading.Timer(0.02, kill, [signal.SIGKILL]).start()"
    job = train(3, *LONG, program=broken_program(1, 7, kill), code=FAILED)
    assert job.fault_to_end_s < LIMIT_S, job.text
    assert processes_of(job) == []


def test_ctrl_c_stops_the_job(train: Trainer) -> None:
    job = train(3, *LONG, program=broken_program(1, 7, "kill(signal.SIGINT)"))
    assert job.fault_to_end_s < LIMIT_S, job.text
    assert job.summary["status"] == "interrupted"
    assert processes_of(job) == []


def test_a_thread_that_mpi_was_not_started_for_is_refused(train: Trainer, tmp_path: Path) -> None:
    config = tmp_path / "thread.toml"
    config.write_text('[reduce]\nprogress_thread = "on"\n[grid]\nranks_per_node = 1\n')
    job = train(2, config, *SMALL, code=2)
    assert "reduce.progress_thread: on needs MPI_THREAD_MULTIPLE" in only_message(job.stderr)
