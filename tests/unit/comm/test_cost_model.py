"""The cost model of the all-reduce against arithmetic by hand, and the choice that follows from it."""

from __future__ import annotations

import pytest

from lepton_mpi.comm import reduce_choice
from lepton_mpi.comm.cost_model import CodecRates, Machine, choose, predict
from lepton_mpi.comm.reduce_choice import ReduceChoice

EXACT = CodecRates(encode=10e9, decode_add=10e9, requantise=10e9, decode=10e9, ratio=1.0)
INT8 = CodecRates(encode=6e9, decode_add=6e9, requantise=3e9, decode=6e9, ratio=3.94)


def machine(num_nodes: int = 2, link_rate: float = 125e6, num_owners: int = 1) -> Machine:
    return Machine(
        num_nodes=num_nodes,
        num_owners=num_owners,
        node_latency_s=10e-6,
        node_rate=4e9,
        link_latency_s=50e-6,
        link_rate=link_rate,
        codecs={"exact": EXACT, "int8": INT8},
        plain=[(1024, 100e-6), (2**20, 12e-3), (2**22, 48e-3)],
    )


def test_time_of_two_phases_and_a_pipeline() -> None:
    nbytes = 2**20
    net = 2 * 50e-6 + nbytes / (125e6 * 3.94)
    cpu = nbytes * (0.5 * 3 / 6e9 + 0.5 / 3e9)
    assert predict(machine(), "int8", nbytes, num_chunks=8) == pytest.approx(10e-6 + nbytes / 4e9 + net + cpu / 8)
    # Where the link is fast, encoding is the bottleneck.
    fast = predict(machine(link_rate=1e12), "int8", nbytes, num_chunks=8)
    assert fast == pytest.approx(10e-6 + nbytes / 4e9 + cpu + (2 * 50e-6 + nbytes / (1e12 * 3.94)) / 8)


def test_owners_share_what_travels_and_nodes_multiply_latency() -> None:
    one, two = (predict(machine(num_owners=owners), "exact", 2**24, 1) for owners in (1, 2))
    inside = 10e-6 + 2**24 / 4e9 + 2 * 50e-6
    assert two - inside == pytest.approx((one - inside) / 2)
    short = predict(machine(num_nodes=5), "exact", 4) - predict(machine(num_nodes=2), "exact", 4)
    assert short == pytest.approx(6 * 50e-6, rel=1e-3)


def test_one_node_sends_nothing() -> None:
    assert predict(machine(num_nodes=1), "int8", 2**20) == predict(machine(num_nodes=1), "exact", 2**20)
    assert predict(machine(num_nodes=1), "exact", 2**20) == pytest.approx(10e-6 + 2**20 / 4e9)


@pytest.mark.parametrize(("nbytes", "seconds"), [(4, 100e-6), (1024, 100e-6), (2**20, 12e-3), (2**21, 24e-3), (2**24, 192e-3)])
def test_plain_follows_its_curve(nbytes: int, seconds: float) -> None:
    assert predict(machine(), "plain", nbytes) == pytest.approx(seconds)


def test_compression_must_save_a_tenth() -> None:
    assert choose({"plain": 1.0, "exact": 1.1, "int8": 0.95}) == "plain"
    assert choose({"plain": 1.2, "exact": 1.0, "int8": 0.95}) == "exact"
    assert choose({"plain": 1.0, "exact": 1.1, "int8": 0.85, "bf16": 0.7}) == "bf16"
    assert choose({"int8": 2.0, "sign1": 1.9}) == "sign1"


class Job:
    """Sums whose times are given; other ranks see the same."""

    def __init__(self, times: dict[str, float], allow: tuple[str, ...] = ("exact", "int8")) -> None:
        self.times, self.num_agreed = times, 0
        self.choice = ReduceChoice(machine(), allow, self.agree)

    def agree(self, seconds: list[float]) -> list[float]:
        self.num_agreed += 1
        return seconds

    def run(self, count: int, nbytes: int = 2**20) -> list[str]:
        ways = []
        for _ in range(count):
            ways.append(self.choice.next(nbytes))
            self.choice.record(nbytes, ways[-1], self.times[ways[-1]])
        return ways


def test_predictions_begin_and_measurements_decide() -> None:
    job = Job({"plain": 1e-3, "exact": 3e-3, "int8": 2e-3})
    assert job.choice.chosen(2**20) == "int8"  # as predicted
    ways = job.run(40)
    assert set(ways) == {"plain", "exact", "int8"}
    assert set(ways[20:]) == {"plain"}
    assert job.num_agreed >= 1


def test_a_change_of_the_machine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduce_choice, "_PROBE_EVERY", 64)
    job = Job({"plain": 10e-3, "exact": 9e-3, "int8": 2e-3})
    assert job.run(60)[-1] == "int8"
    job.times["int8"] = 50e-3  # the cores became busy
    assert job.run(400)[-1] == "exact"
    job.times["plain"] = 1e-3
    assert job.run(1200)[-1] == "plain"


def test_ways_that_measure_alike_are_tried_again() -> None:
    job = Job({"plain": 10e-3, "exact": 10.5e-3}, allow=("exact",))
    job.run(8)  # the first trials, in which something held exact up
    job.times["exact"] = 9e-3
    job.run(50)
    assert job.choice.chosen(2**20) == "exact"
    job = Job({"plain": 10e-3, "exact": 13e-3}, allow=("exact",))
    assert job.run(60).count("exact") == reduce_choice._TRIALS  # there is no doubt


def test_settled_sums_need_not_ask() -> None:
    job = Job({"plain": 1e-5, "exact": 3e-5, "int8": 2e-3})
    job.run(200, 4096)
    while not job.choice.settled(4096, "plain"):  # the other way is being tried
        job.run(1, 4096)
    free = job.choice.settled(4096, "plain")
    trials = reduce_choice._SHORT_TRIALS
    assert trials < free <= reduce_choice._PROBE_EVERY
    assert job.choice.settled(4096, "exact") == 0
    agreed = job.num_agreed
    for _ in range(free):
        job.choice.count(4096, 1e-5)
    assert (job.choice.settled(4096, "plain"), job.num_agreed) == (0, agreed)
    job.run(trials + 1, 4096)  # a look, or at first trials of the other way
    assert job.num_agreed == agreed + 1  # as if each of them had asked
    job.times = {"plain": 9e-3, "exact": 8e-3, "int8": 1e-3}
    job.run(64, 2**24)
    assert job.choice.settled(2**24, "int8") == 0  # what is encoded takes the long way


def test_sizes_are_chosen_apart() -> None:
    job = Job({"plain": 1e-4, "exact": 2e-4, "int8": 3e-4})
    job.run(64, 1024)
    job.times = {"plain": 9e-3, "exact": 8e-3, "int8": 1e-3}
    job.run(64, 2**24)
    assert (job.choice.chosen(1024), job.choice.chosen(2**24)) == ("plain", "int8")


def test_a_single_way_needs_no_agreement() -> None:
    job = Job({"exact": 1.0}, allow=())
    job.choice = ReduceChoice(machine(), ["exact"], job.agree, plain=False)
    assert set(job.run(200)) == {"exact"}
    assert job.num_agreed == 0
