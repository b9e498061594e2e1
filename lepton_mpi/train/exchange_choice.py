"""Which exchange of gradients a configuration asks for, and what of it checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping

from lepton_mpi.comm.contract import collective
from lepton_mpi.compress.modes import POWERSGD
from lepton_mpi.config.schema import ReduceConfig
from lepton_mpi.parallel.exact_exchange import ExactExchange
from lepton_mpi.parallel.exchange import Exchange
from lepton_mpi.parallel.gradient_exchange import GradientExchange, TopkShare
from lepton_mpi.parallel.powersgd_exchange import PowerSgdExchange
from lepton_mpi.parallel.value_scales import ValueScales
from lepton_mpi.runtime.threads import is_oversubscribed
from lepton_mpi.train.compression import scales_values
from lepton_mpi.train.low_rank_state import LowRankState
from lepton_mpi.train.network import Network
from lepton_mpi.train.rank_slot_state import rank_slot_states
from lepton_mpi.train.residual_state import residual_states
from lepton_mpi.train.value_scale_state import ValueScaleState


@collective("network.grid.world")
def make_exchange(network: Network, reduce: ReduceConfig, optimizer: str, seed: int) -> Exchange:
    """Return the exchange of a network's gradients, with its state for checkpoints.

    Collective over network.grid.world.

    Args:
        network: the model on its grid.
        reduce: how gradients are summed.
        optimizer: name of the optimizer, which decides whether gradients are scaled, see `scales_values`.
        seed: of what is drawn.

    Raises:
        GridError: a thread must be, but MPI does not admit it.
    """
    grid, memory = network.grid, network.memory
    if network.totals:
        return ExactExchange(grid, memory, network.totals)
    exchange = _make_rounding(network, reduce, optimizer, seed)
    exchange.extra_states = (*exchange.extra_states, *rank_slot_states(grid, memory, _weight_shapes(network)))
    return exchange


@collective("network.grid.world")
def _make_rounding(network: Network, reduce: ReduceConfig, optimizer: str, seed: int) -> GradientExchange:
    """Return the exchange whose sums round, with its own state. Collective over network.grid.world."""
    grid, memory = network.grid, network.memory
    spin = not is_oversubscribed()
    share = TopkShare(reduce.topk_share, reduce.topk_warmup_steps)
    if reduce.mode == POWERSGD:
        return _make_low_rank(network, reduce, spin, seed)
    scales = ValueScales(grid, memory) if scales_values(reduce, optimizer) else None
    exchange = GradientExchange(
        grid,
        memory,
        reduce.mode,
        reduce.timeout_s,
        spin,
        reduce.allow,
        reduce.progress_thread,
        share,
        reduce.warmup_mode,
        scales,
    )
    if exchange.residual is not None:
        exchange.extra_states = residual_states(grid, memory, _weight_shapes(network), exchange.residual)
    if scales is not None:
        state = ValueScaleState(grid, memory.layout, memory.ownership, _weight_shapes(network), scales)
        exchange.extra_states = (*exchange.extra_states, state)
    return exchange


@collective("network.grid.world")
def _make_low_rank(network: Network, reduce: ReduceConfig, spin: bool, seed: int) -> GradientExchange:
    """Return the exchange of factors, with its state. Collective over network.grid.world."""
    grid, memory, rank = network.grid, network.memory, reduce.powersgd_rank
    exchange = PowerSgdExchange(
        grid, memory, reduce.timeout_s, spin, reduce.progress_thread, reduce.warmup_mode, rank=rank, seed=seed
    )
    weights = [spec for spec in network.model.parameters if spec.role == "weight"]
    assert exchange.residual is not None
    factors = LowRankState(grid, memory.layout, weights, exchange.kept, rank)
    exchange.extra_states = (*residual_states(grid, memory, _weight_shapes(network), exchange.residual), factors)
    return exchange


def _weight_shapes(network: Network) -> Mapping[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in network.model.parameters if spec.role == "weight"}
