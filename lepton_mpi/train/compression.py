"""What training does so that codecs that lose much do not cost it much."""

from __future__ import annotations

from lepton_mpi.config.schema import ReduceConfig
from lepton_mpi.optim.optimizer import Optimizer
from lepton_mpi.parallel.gradient_exchange import AUTO

# What they lose is made up for, but some steps late, and the first steps are those in which gradients change most.
_WARMED = frozenset({"sign1", "topk", "powersgd"})
# One scale for many values: the size of each should be known. topk sends the largest as they are; PowerSGD needs the columns.
_SCALED = {"sgd": frozenset({"sign1"}), "adamw": frozenset({"sign1", "int4"}), "lamb": frozenset({"sign1", "int4"})}


def scales_values(reduce: ReduceConfig, optimizer: str) -> bool:
    """Return whether gradients are scaled value by value before they are encoded. Local, pure.

    With 1-bit Adam they are not: a momentum is a mean of many steps, and keeps it without.

    Args:
        reduce: how gradients are summed.
        optimizer: name of the optimizer.
    """
    return reduce.scale_values and bool(_SCALED.get(optimizer, frozenset()) & _codecs(reduce))


def warmup_steps(reduce: ReduceConfig, optimizer: Optimizer, optimizer_name: str, decay_step: int) -> int:
    """Return how many steps travel as `reduce.warmup_mode` says before the codec that is configured begins. Local, pure.

    Args:
        reduce: how gradients are summed.
        optimizer: knows how many updates it needs in nearly full precision.
        optimizer_name: its name.
        decay_step: step at which the learning rate has fallen to its end.
    """
    codecs = _codecs(reduce)
    if not codecs - {"exact", "bf16", "fp16"}:
        return 0
    own = round(reduce.warmup_share * decay_step) if codecs & _WARMED or scales_values(reduce, optimizer_name) else 0
    return max(own, optimizer.warmup_steps)


def late_codec(reduce: ReduceConfig, num_warmup_steps: int, num_steps: int) -> str:
    """Return what to tell somebody whose run ends before the codec that is configured begins; empty if it begins. Local, pure."""
    if num_warmup_steps < num_steps or not num_warmup_steps:
        return ""
    return (
        f"reduce.mode = {reduce.mode} would begin after {num_warmup_steps} steps, but the run has {num_steps}: until then sums "
        f"travel in {reduce.warmup_mode}. Set reduce.warmup_share = 0, or optimizer.decay_steps to the length of the run"
    )


def _codecs(reduce: ReduceConfig) -> set[str]:
    return set(reduce.allow) if reduce.mode == AUTO else {reduce.mode}
