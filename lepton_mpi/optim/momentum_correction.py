"""What makes training with few values of each gradient as good as with all: momentum before selection, and a warm-up.

Source: Lin et al., "Deep gradient compression", ICLR 2018, sections 3.1 to 3.3. Each rank keeps two arrays of its own, as long as
its gradient: u, its momentum, and v, what it has not sent yet. A step is `accumulate`, a choice of values of v by size, their sum
over the ranks in the place of the sum of gradients, `clear_sent`, and an update without momentum.
"""

from __future__ import annotations

from lepton_mpi.ops.array_module import Array
from lepton_mpi.ops.checks import check_slices


def accumulate(u: Array, v: Array, grads: Array, *, momentum: float, nesterov: bool = False) -> None:
    """Add a gradient to the momentum, and that to what is to be sent. Local.

    u = momentum u + g; v += u (algorithm 1, lines 6 and 7), or with Nesterov's momentum u = momentum (u + g); v += u + g.

    Args:
        u: float32 [n], momentum, zeros before the first step; the caller's, updated.
        v: float32 [n], what is to be sent, likewise.
        grads: float32 [n]; read only.
        momentum: decay of the momentum, in [0, 1).
        nesterov: whether the momentum is Nesterov's.

    Raises:
        ValueError: dtypes, sizes or layouts do not fit, or the momentum is out of range.
    """
    check_slices(u=u, v=v, grads=grads)
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum: expected a number in [0, 1), received {momentum}")
    if nesterov:
        u += grads
        u *= momentum
        v += grads
    else:
        u *= momentum
        u += grads
    v += u


def clear_sent(u: Array, v: Array, sent: Array, *, masking: bool = True) -> None:
    """Forget what was sent. Local.

    Args:
        u: float32 [n]; the caller's, updated.
        v: float32 [n]; the caller's, updated.
        sent: positions that were sent, as a mask, bool [n], or as indices, integers [k].
        masking: forget the momentum too, so that old momentum does not push on (momentum factor masking, section 3.2). Values that
            are sent in most steps then have hardly any, and learn slower by up to 1 / (1 - momentum).
    """
    v[sent] = 0
    if masking:
        u[sent] = 0


def density(step: int, final: float, warmup_steps: int) -> float:
    """Return which share of the values is sent at a step. Local, pure.

    It falls exponentially from a quarter to `final` (section 3.3: 25%, 6.25%, 1.5625%, ... over the warm-up).

    Args:
        step: number of the step, from 0.
        final: share after the warm-up, in (0, 1].
        warmup_steps: steps until then; 0: none.

    Raises:
        ValueError: the final share is out of range.
    """
    if not 0.0 < final <= 1.0:
        raise ValueError(f"final: expected a share above 0 and up to 1, received {final}")
    first = max(0.25, final)
    if step >= warmup_steps:
        return final
    return float(first * (final / first) ** (step / warmup_steps))
