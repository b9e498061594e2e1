"""How many threads a rank gets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lepton_mpi.runtime import threads
from lepton_mpi.runtime.threads import limit_threads, ranks_on_node, threads_exceed_cores, usable_cores

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LAUNCHERS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE", "SLURM_TASKS_PER_NODE")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *LAUNCHERS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of eight cores, with this process bound to none of them."""
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4),
        ({"MPI_LOCALNRANKS": "3"}, 3),
        ({"MV2_COMM_WORLD_LOCAL_SIZE": "5"}, 5),
        ({"SLURM_TASKS_PER_NODE": "8(x2),4"}, 8),
        ({"SLURM_TASKS_PER_NODE": "6"}, 6),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_TASKS_PER_NODE": "6"}, 2),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "0"}, 1),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "many"}, 1),
    ],
)
def test_ranks_on_node(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: int) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks_on_node() == expected


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(
    ("asked", "environment", "ranks", "expected"),
    [
        (0, "", 1, 8),
        (0, "", 3, 2),
        (0, "", 16, 1),
        (0, "5", 2, 5),  # what the user said stays
        (0, "5,2", 2, 5),
        (3, "5", 2, 3),  # unless the configuration says otherwise
        (3, "", 16, 3),
    ],
)
def test_limit(monkeypatch: pytest.MonkeyPatch, asked: int, environment: str, ranks: int, expected: int) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", str(ranks))
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    assert limit_threads(asked) == expected


def test_a_rank_bound_to_its_own_cores_has_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {2, 3}, raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "4")
    if sys.platform == "linux":
        assert usable_cores() == 8
        assert limit_threads(0) == 2


@pytest.mark.usefixtures("cores")
def test_threads_that_nobody_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not threads_exceed_cores()
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    assert threads_exceed_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert not threads_exceed_cores()


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(("ranks", "expected"), [(1, False), (8, False), (9, True)])
def test_oversubscription(monkeypatch: pytest.MonkeyPatch, ranks: int, expected: bool) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", str(ranks))
    assert threads.is_oversubscribed.__wrapped__() is expected


def test_variables_are_set_before_numpy_is_loaded() -> None:
    program = (
        "import sys\n"
        "from lepton_mpi.runtime.threads import limit_threads\n"
        "assert 'numpy' not in sys.modules\n"
        "limit_threads(3)\n"
        f"import os; print([os.environ[name] for name in {VARIABLES}])\n"
        "import numpy; limit_threads(5); print(os.environ['OMP_NUM_THREADS'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["['3', '3', '3']", "3"]
