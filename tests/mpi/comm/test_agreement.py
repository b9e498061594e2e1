"""An error of one rank is raised on all of them, with its type and its rank."""

from __future__ import annotations

import pytest

from lepton_mpi.comm.agreement import do_on_all, do_on_root, raise_together
from lepton_mpi.errors import ConfigError, DataError, LeptonError, SharedMemoryError
from lepton_mpi.runtime.mpi import MPI


class KeyError2(ConfigError):
    """A subclass that this test alone knows."""


@pytest.mark.mpi
def test_no_error_is_none(comm: MPI.Intracomm) -> None:
    assert raise_together(comm, None) is None  # type: ignore[func-returns-value]


@pytest.mark.mpi
@pytest.mark.parametrize("kind", [DataError, SharedMemoryError, KeyError2, LeptonError])
def test_each_rank_in_turn(comm: MPI.Intracomm, kind: type[LeptonError]) -> None:
    for failing in range(comm.size):
        error = kind("the file is gone") if comm.rank == failing else None
        with pytest.raises(LeptonError) as found:
            raise_together(comm, error)
        assert type(found.value) is kind
        assert found.value.exit_code == kind.exit_code
        assert str(found.value) == ("the file is gone" if failing == 0 else f"rank {failing}: the file is gone")


@pytest.mark.mpi
def test_the_lowest_rank_speaks(comm: MPI.Intracomm) -> None:
    with pytest.raises(DataError, match=r"^of rank 0$"):
        raise_together(comm, DataError(f"of rank {comm.rank}"))
    if comm.size < 3:
        return
    with pytest.raises(ConfigError, match=r"^rank 1: one$"):
        raise_together(comm, [None, ConfigError("one"), DataError("two"), None][comm.rank])


@pytest.mark.mpi
def test_an_error_of_another_kind_becomes_one_of_ours(comm: MPI.Intracomm) -> None:
    class Unpicklable(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a} and {b}")
            self.hook = lambda: None

    last = comm.size - 1
    for error, text in ((OSError(2, "No such file"), "No such file"), (Unpicklable(1, 2), "Unpicklable: 1 and 2")):
        with pytest.raises(LeptonError, match=text) as found:
            raise_together(comm, error if comm.rank == last else None)
        assert type(found.value) is LeptonError
        assert found.value.exit_code == 1


@pytest.mark.mpi
def test_work_on_all_ranks(comm: MPI.Intracomm) -> None:
    assert do_on_all(comm, lambda: comm.rank) == comm.rank
    assert do_on_all(comm, lambda: None) is None
    for failing in range(comm.size):

        def work(failing: int = failing) -> None:
            if comm.rank == failing:
                raise DataError("no such file")

        with pytest.raises(DataError, match="no such file"):
            do_on_all(comm, work)


@pytest.mark.mpi
def test_work_on_the_root(comm: MPI.Intracomm) -> None:
    assert do_on_root(comm, lambda: comm.rank + 7) == 7

    def work() -> None:
        assert comm.rank == 0
        raise ConfigError("no such key")

    with pytest.raises(ConfigError, match=r"^no such key$"):
        do_on_root(comm, work)
