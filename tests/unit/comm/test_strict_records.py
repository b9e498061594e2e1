"""Records of calls: packed and compared, and what a board says of a rank."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lepton_mpi.comm.strict import record
from lepton_mpi.comm.strict.board import STATE_NBYTES, State
from lepton_mpi.comm.strict.record import RECORD_NBYTES, Record, call_site, describe_difference, name_ranks
from lepton_mpi.comm.strict.watch import checked, find_axis

SUM = Record("sum", "grid.shard", "12", "float32", "model.py:7")
GATHER = Record("gather", "grid.shard", "", "", "model.py:9")


@pytest.mark.parametrize("site", ["model.py:7", "/a" * 400 + "/model.py:7", "/ä" * 400 + "/model.py:7"])
def test_packed_records_come_back(site: str) -> None:
    packed = Record("sum", "grid.shard", "12", "float32", site).pack()
    assert len(packed) == RECORD_NBYTES
    found = Record.unpack(packed)
    assert (found.name, found.axis, found.count, found.dtype) == ("sum", "grid.shard", "12", "float32")
    assert site.endswith(found.site)
    assert found.site.endswith("model.py:7")


def test_too_long_names_are_cut() -> None:
    packed = Record("n" * 600, "a" * 600, "1" * 600, "f" * 600, "s" * 600).pack()
    assert len(packed) == RECORD_NBYTES
    assert Record.unpack(packed).name == "n" * 80


def test_equal_records_are_no_difference() -> None:
    assert describe_difference({0: SUM, 1: SUM, 5: SUM}) == ""
    assert describe_difference({}) == ""


def test_the_odd_rank_is_named_first() -> None:
    text = describe_difference({0: GATHER, 1: SUM, 2: SUM})
    assert text == (
        "ranks differ in name, count, dtype, call site: rank 0 calls gather over grid.shard at model.py:9, "
        "but ranks 1, 2 call sum of 12 x float32 over grid.shard at model.py:7"
    )


@pytest.mark.parametrize(("field", "value"), [("name", "max"), ("axis", "grid.data"), ("count", "13"), ("dtype", "float64")])
def test_each_field_counts(field: str, value: str) -> None:
    other = Record(**{**SUM.__dict__, field: value})
    text = describe_difference({0: SUM, 3: other})
    assert text.startswith(f"ranks differ in {field}: rank 3 calls {other}, but rank 0 calls {SUM}")


def test_three_kinds_of_calls_are_all_named() -> None:
    third = Record("scan", "grid.shard", "", "", "model.py:11")
    text = describe_difference({0: SUM, 1: GATHER, 2: third, 3: SUM, 4: third})
    assert text.index("rank 1 calls gather") < text.index("ranks 0, 3 call sum") < text.index("ranks 2, 4 call scan")


def test_many_ranks_are_counted() -> None:
    assert name_ranks([4]) == "rank 4"
    assert name_ranks(list(range(20))) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more"


def test_the_call_site_is_this_line() -> None:
    site = call_site()
    file, line = site.rsplit(":", 1)
    assert file == __file__
    assert Path(__file__).read_text().splitlines()[int(line) - 1].strip() == "site = call_site()"


def test_calls_at_the_end_of_the_program_have_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    machinery = type("Everything", (), {"__contains__": lambda self, file: True})()
    monkeypatch.setattr(record, "_MACHINERY", machinery)  # as where Python itself calls a marked function
    assert call_site() == "the end of the program"


def test_states_come_back() -> None:
    for state in (State(), State(SUM, None, True, 1.5), State(SUM, GATHER, False, 2.5), State(None, GATHER, False, 0.0)):
        packed = state.pack()
        assert len(packed) == STATE_NBYTES
        assert State.unpack(packed) == state


def test_states_in_words() -> None:
    assert State().describe(2, 9.0) == "rank 2 has not called any collective yet"
    assert State(SUM, None, True, 1.5).describe(2, 4.0) == f"rank 2 waits for 2.5 s in {SUM}"
    assert State(SUM, None, False, 1.5).describe(2, 4.0) == f"rank 2 has called nothing for 2.5 s since {SUM}"
    assert State(SUM, GATHER, False, 1.5).describe(2, 4.0).endswith(f"since {GATHER}, before it {SUM}")


class Comm:
    """Stands for a communicator that is watched."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, str, bool]] = []
        self.is_open = True
        self.strict_axis = self

    def record(self, name: str, count: object, dtype: object) -> tuple[str, object, str]:
        return name, count, str(dtype)

    def check(self, record: tuple[str, int, str], patient: bool) -> None:
        self.calls.append((*record, patient))


def test_the_axis_is_found_from_the_arguments() -> None:
    comm, data = Comm(), Comm()
    grid = SimpleNamespace(data=data, data_across=None, world=None)
    assert find_axis("comm", {"comm": comm}) is comm
    assert find_axis("the world", {"self": SimpleNamespace(_comm=comm)}) is comm
    assert find_axis("grid.data", {"self": SimpleNamespace(_data=data)}) is data
    assert find_axis("grid.data", {"grid": grid}) is data
    assert find_axis("grid.data", {"self": SimpleNamespace(_grid=grid)}) is data
    run = SimpleNamespace(training=SimpleNamespace(network=SimpleNamespace(grid=grid)))
    assert find_axis("grid.data", {"run": run, "count": 3}) is data
    assert find_axis("grid.shard", {"run": run}) is None
    data.is_open = False
    assert find_axis("grid.data", {"grid": grid}) is None


def test_a_checked_function_compares_before_it_runs() -> None:
    comm, array = Comm(), SimpleNamespace(size=4, dtype="float32")

    def total(comm: Comm, x: object, twice: bool = False) -> int:
        assert len(comm.calls) == 1
        return 7

    call = checked(total, "comm", "x", True)
    assert call(comm, x=array) == 7
    assert comm.calls == [(total.__qualname__, 4, "float32", True)]
    assert call.__name__ == "total"
    with pytest.raises(TypeError, match=r"total\(\) missing 1 required positional argument: 'x'"):
        call(comm)
