"""What the launcher says, and a launcher of another MPI."""

from __future__ import annotations

from typing import ClassVar

import pytest

from lepton_mpi.errors import ConfigError, GridError
from lepton_mpi.runtime.device import describe_device, select_device
from lepton_mpi.runtime.mpi import MPI, choose_progress_thread, launched_rank, launched_ranks, mpi_library, start_mpi

VARIABLES = (
    *("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_RANK", "PMI_RANK"),
    *("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NTASKS"),
)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "ranks", "rank"),
    [
        ({}, 1, 0),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, 4, 3),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, 2, 1),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "7"}, 8, 7),
        ({"SLURM_NTASKS": "8"}, 1, 0),  # an allocation, not a step
        ({"SLURM_STEP_NUM_TASKS": "8"}, 1, 0),
        ({"OMPI_COMM_WORLD_SIZE": "x"}, 1, 0),
        ({"SLURM_STEP_NUM_TASKS": "x", "SLURM_PROCID": "0"}, 1, 0),
    ],
)
def test_what_launchers_say(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], ranks: int, rank: int) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (launched_ranks(), launched_rank()) == (ranks, rank)


def test_a_launcher_of_another_mpi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_mpi().Get_size() == 1
    monkeypatch.setenv("PMI_SIZE", "4")
    with pytest.raises(GridError, match=r"the launcher started 4 ranks, but MPI sees a world of 1: .*another MPI"):
        start_mpi()


def test_mpi_is_started_once() -> None:
    start_mpi()
    assert start_mpi() == MPI.COMM_WORLD
    assert MPI.Is_initialized()
    assert mpi_library()
    assert "\n" not in mpi_library()


@pytest.mark.parametrize(
    ("local", "asked", "level"),
    [
        ("4", None, MPI.THREAD_SERIALIZED),  # all ranks on this node
        ("2", None, MPI.THREAD_MULTIPLE),
        ("4", True, MPI.THREAD_MULTIPLE),
        ("2", False, MPI.THREAD_SERIALIZED),
    ],
)
def test_threads_that_mpi_is_asked_for(monkeypatch: pytest.MonkeyPatch, local: str, asked: bool | None, level: int) -> None:
    class Fake:
        THREAD_SERIALIZED, THREAD_MULTIPLE = MPI.THREAD_SERIALIZED, MPI.THREAD_MULTIPLE
        levels: ClassVar[list[int]] = []

        class COMM_WORLD:
            Get_size = staticmethod(lambda: 4)

        Is_initialized = staticmethod(lambda: False)
        Init_thread = staticmethod(levels.append)

    monkeypatch.setattr("lepton_mpi.runtime.mpi.MPI", Fake)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", local)
    start_mpi(asked)
    assert Fake.levels == [level]


@pytest.mark.parametrize(
    ("how", "several_nodes", "given", "chosen"),
    [
        ("auto", True, MPI.THREAD_MULTIPLE, True),
        ("auto", True, MPI.THREAD_SERIALIZED, False),
        ("auto", False, MPI.THREAD_MULTIPLE, False),
        ("off", True, MPI.THREAD_MULTIPLE, False),
        ("on", True, MPI.THREAD_MULTIPLE, True),
        ("on", False, MPI.THREAD_SERIALIZED, False),  # nothing to move
    ],
)
def test_whether_a_thread_moves_messages(
    monkeypatch: pytest.MonkeyPatch, how: str, several_nodes: bool, given: int, chosen: bool
) -> None:
    monkeypatch.setattr(MPI, "Query_thread", lambda: given)
    assert choose_progress_thread(how, several_nodes) == chosen


def test_a_thread_that_mpi_does_not_admit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MPI, "Query_thread", lambda: MPI.THREAD_SERIALIZED)
    with pytest.raises(GridError, match=r"reduce\.progress_thread: on needs MPI_THREAD_MULTIPLE"):
        choose_progress_thread("on", True)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    module = select_device("cpu", 3)
    assert module.__name__ == "numpy"
    assert describe_device(module) == "CPU"

    def missing(name: str) -> object:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("lepton_mpi.runtime.device.importlib.import_module", missing)
    with pytest.raises(ConfigError, match=r"run\.device: expected CuPy for gpu.*No module named 'cupy'"):
        select_device("gpu", 0)


class FakeCupy:
    """CuPy on a machine with three GPUs, or without a driver."""

    class cuda:
        class runtime:
            class CUDARuntimeError(RuntimeError):
                pass

            count = 3

            @classmethod
            def getDeviceCount(cls) -> int:
                if cls.count == 0:
                    raise cls.CUDARuntimeError("cudaErrorNoDevice")
                return cls.count

        class Device:
            used = -1

            def __init__(self, number: int) -> None:
                self._number = number

            def use(self) -> None:
                type(self).used = self._number


def test_ranks_take_the_gpus_of_a_node_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_mpi.runtime.device.importlib.import_module", lambda name: FakeCupy)
    for rank, number in ((0, 0), (2, 2), (3, 0), (4, 1)):
        assert select_device("gpu", rank) is FakeCupy
        assert FakeCupy.cuda.Device.used == number
    monkeypatch.setattr(FakeCupy.cuda.runtime, "count", 0)
    with pytest.raises(ConfigError, match=r"CuPy finds no GPU on this node \(cudaErrorNoDevice\)"):
        select_device("gpu", 0)
