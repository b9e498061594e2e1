"""How long an all-reduce takes, from what was measured of a machine. Pure arithmetic, no MPI.

Between N nodes an owner moves a slice of s float32 bytes in two phases, in C chunks of a pipeline, with rho bytes of
float32 in a byte sent, latency a, bandwidth b, and codec rates E (encode), A (decode and add), R (encode with feedback),
D (decode) in float32 bytes a second:

    T_net = 2 (N - 1) a + 2 s (N - 1) / N / (b rho)
    T_cpu = s ((N - 1) / N (1/E + 1/A + 1/D) + 1 / (N R))
    T     = max(T_net, T_cpu) + min(T_net, T_cpu) / C

The first term of T is the bottleneck, the second fills and drains the pipeline. Plain MPI_Allreduce, whose algorithm is
the library's affair, is measured at some sizes and interpolated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

PLAIN = "plain"
LOSSLESS = frozenset({PLAIN, "exact"})
# Compression is taken only if it saves a tenth: less is within what measurements differ by.
WORTH_IT = 0.9


@dataclass(frozen=True)
class CodecRates:
    """Rates of a codec in float32 bytes a second, with all ranks of a node at work, and its ratio.

    Attributes:
        encode, decode_add, requantise, decode: one pass each; requantise is encoding with feedback.
        ratio: bytes of float32 in one byte sent.
    """

    encode: float
    decode_add: float
    requantise: float
    decode: float
    ratio: float


@dataclass(frozen=True)
class Machine:
    """What was measured; of all ranks the slowest.

    Attributes:
        num_nodes: nodes, N.
        num_owners: ranks of a node that exchange a slice each with other nodes.
        node_latency_s, node_rate: of the exact sum inside a node: time of a short one, and bytes a second of a long one.
        link_latency_s, link_rate: of messages between nodes: time of a short one, and bytes a second and owner, with all
            owners at work.
        codecs: rates by codec.
        plain: (bytes, seconds) of MPI_Allreduce, by rising bytes.
    """

    num_nodes: int
    num_owners: int
    node_latency_s: float
    node_rate: float
    link_latency_s: float
    link_rate: float
    codecs: Mapping[str, CodecRates]
    plain: Sequence[tuple[int, float]]


def predict(machine: Machine, candidate: str, nbytes: int, num_chunks: int = 4) -> float:
    """Return the seconds that an all-reduce takes. Local.

    Args:
        machine: what was measured.
        candidate: "plain" or a codec.
        nbytes: float32 bytes to sum.
        num_chunks: into how many an owner's slice is cut.
    """
    if candidate == PLAIN:
        return _interpolate(machine.plain, nbytes)
    inside = machine.node_latency_s + nbytes / machine.node_rate
    n = machine.num_nodes
    if n == 1:
        return inside
    rates, part, share = machine.codecs[candidate], nbytes / machine.num_owners, (n - 1) / n
    net = 2 * (n - 1) * machine.link_latency_s + 2 * part * share / (machine.link_rate * rates.ratio)
    cpu = part * (share * (1 / rates.encode + 1 / rates.decode_add + 1 / rates.decode) + 1 / (n * rates.requantise))
    return inside + max(net, cpu) + min(net, cpu) / num_chunks


def choose(seconds: Mapping[str, float]) -> str:
    """Return the candidate to take, given the time of each: the fastest, but a lossy one only where it is well ahead. Local."""
    fastest = min(seconds, key=lambda c: seconds[c])
    lossless = [c for c in seconds if c in LOSSLESS]
    if fastest in LOSSLESS or not lossless:
        return fastest
    best = min(lossless, key=lambda c: seconds[c])
    return fastest if seconds[fastest] < WORTH_IT * seconds[best] else best


def _interpolate(curve: Sequence[tuple[int, float]], nbytes: int) -> float:
    """Follow a curve in logarithms; below it time is constant, above it grows as between its last two points."""
    if nbytes <= curve[0][0]:
        return curve[0][1]
    if nbytes > curve[-1][0]:
        (n0, t0), (n1, t1) = curve[-2] if len(curve) > 1 else (0, 0.0), curve[-1]
        return t1 + (nbytes - n1) * max((t1 - t0) / (n1 - n0), 0.0)
    i = bisect_left([n for n, _ in curve], nbytes)
    (n0, t0), (n1, t1) = curve[i - 1], curve[i]
    return exp(log(t0) + (log(t1) - log(t0)) * (log(nbytes) - log(n0)) / (log(n1) - log(n0)))
