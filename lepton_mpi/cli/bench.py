"""`python -m lepton_mpi bench allreduce`: the compressed all-reduce against MPI_Allreduce, on the ranks it is started on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.cli.bench_arguments import BenchArguments
from lepton_mpi.comm.compressed_allreduce import CompressedAllreduce
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import CodecError
from lepton_mpi.runtime.mpi import MPI, mpi_library
from lepton_mpi.runtime.threads import usable_cores

# Rank r's value i is number i + r * _SHIFT of a table that repeats, so that the sum of all ranks is known without the
# other ranks' arrays. Both are primes: no codec block lies at one place of the table twice in a row.
_PERIOD = 1_000_003
_SHIFT = 7919
_LEAST_REPEATS, _MOST_REPEATS = 3, 2000
# Largest error of a value that travels once, as a fraction of the largest value; docs/wire_format.md.
_TRAVEL_ERROR = {"exact": 0.0, "bf16": 2**-8, "fp16": 2**-11, "int8": 0.51 / 127, "int4": 0.52 / 7, "sign1": 2.0, "topk": 1.0}
_TRAVEL_ERROR["auto"] = _TRAVEL_ERROR["bf16"]


@dataclass(frozen=True)
class Measurement:
    """One codec at one size.

    Attributes:
        codec, nbytes: what was summed.
        seconds: median time of a sum, of the slowest rank each; plain_seconds likewise for MPI_Allreduce, taken in turns.
        ratio: median of the ratios of neighbours in time, plain / this.
        to_best: median time of the best of all but auto, plain included, / median time of this.
        algbw_gbs: float32 bytes a second, 1e9; busbw_gbs: times 2 (P - 1) / P.
        sent_nbytes: most bytes that any rank sent to other nodes; node_nbytes: that a node sent, in the mean.
        largest_error: of all values against a sum in float64; bound: what the codec may lose.
    """

    codec: str
    nbytes: int
    seconds: float
    plain_seconds: float
    ratio: float
    to_best: float
    algbw_gbs: float
    busbw_gbs: float
    sent_nbytes: int
    node_nbytes: float
    largest_error: float
    bound: float


@collective("comm")
def run_bench(comm: MPI.Intracomm, arguments: BenchArguments) -> None:
    """Measure and print on rank 0.

    Collective over comm.

    Raises:
        CodecError: a sum was wrong, or ranks ended with different bytes.
    """
    results: list[Measurement] = []
    writes = comm.Get_rank() == 0
    if writes and not arguments.json:
        sys.stdout.write(f"{comm.Get_size()} ranks, {usable_cores()} cores here, {mpi_library()}\n{_HEADER}\n")
    for nbytes in arguments.sizes:
        for measurement in measure_size(comm, nbytes // 4, arguments):
            results.append(measurement)
            if writes and not arguments.json:
                sys.stdout.write(_row(measurement) + "\n")
                sys.stdout.flush()
    if writes and arguments.json:
        head = {"benchmark": "allreduce", "ranks": comm.Get_size(), "cores": usable_cores(), "mpi": mpi_library()}
        sys.stdout.write(json.dumps({**head, "results": [asdict(m) for m in results]}, indent=2) + "\n")


@collective("comm")
def measure_size(comm: MPI.Intracomm, size: int, arguments: BenchArguments) -> list[Measurement]:
    """Measure all codecs at one size, in turns with each other and with MPI_Allreduce.

    Collective over comm.
    """
    values = _values(comm.Get_rank(), size)
    out = np.empty_like(values)
    engines = {codec: _make_engine(comm, codec, arguments) for codec in arguments.codecs}
    # In place, as gradients are summed; `out` is filled again before each turn.
    contenders: dict[str, Callable[[], None]] = {"plain": lambda: comm.Allreduce(MPI.IN_PLACE, out)}
    contenders |= {codec: _contender(engine, out) for codec, engine in engines.items()}
    sent, node_sent, errors = {}, {}, {}
    for codec, engine in engines.items():
        before = engine.sent_nbytes
        out[:] = values
        contenders[codec]()
        sent[codec] = int(comm.allreduce(engine.sent_nbytes - before, op=MPI.MAX))
        node_sent[codec] = comm.allreduce(engine.sent_nbytes - before) / engine.num_nodes
        errors[codec] = verify(comm, out, codec)
    times = _take_turns(comm, contenders, values, out, arguments.seconds)
    for engine in engines.values():
        engine.free()
    plain = times["plain"]
    best = min(float(np.median(times[name])) for name in times if name != "auto")
    measurements = []
    for codec in engines:
        seconds = float(np.median(times[codec]))
        algbw = 4 * size / seconds / 1e9
        measurements.append(
            Measurement(
                codec=codec,
                nbytes=4 * size,
                seconds=seconds,
                plain_seconds=float(np.median(plain)),
                ratio=float(np.median(plain / times[codec])),
                to_best=best / seconds,
                algbw_gbs=algbw,
                busbw_gbs=algbw * 2 * (comm.Get_size() - 1) / comm.Get_size(),
                sent_nbytes=sent[codec],
                node_nbytes=node_sent[codec],
                largest_error=errors[codec][0],
                bound=errors[codec][1],
            )
        )
    return measurements


def _make_engine(comm: MPI.Intracomm, codec: str, arguments: BenchArguments) -> CompressedAllreduce:
    options: dict[str, Any] = {"chunk_mib": arguments.chunk_mib} if arguments.chunk_mib else {}
    options |= {"depth": arguments.depth} if arguments.depth else {}
    return CompressedAllreduce(comm, codec, ranks_per_node=arguments.ranks_per_node, **options)


def _contender(engine: CompressedAllreduce, out: NDArray[np.float32]) -> Callable[[], None]:
    shapes = matrix_shapes(out.size)
    return lambda: engine(out, shapes=shapes)


def matrix_shapes(size: int) -> list[tuple[int, ...]]:
    """Return the nearly square matrix that powersgd makes of most of an array, and the rest. Local."""
    rows = 1 << size.bit_length() // 2
    return [(rows, size // rows), (size % rows,)]


@collective("comm")
def _take_turns(
    comm: MPI.Intracomm,
    contenders: dict[str, Callable[[], None]],
    values: NDArray[np.float32],
    out: NDArray[np.float32],
    seconds: float,
) -> dict[str, NDArray[np.float64]]:
    """Time every contender once a round, in rounds until the time is spent; a tenth of them warms up. Collective over comm."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    start = MPI.Wtime()
    for repeat in range(_MOST_REPEATS + 1):
        for name in np.random.default_rng(repeat).permutation(list(contenders)):  # who follows whom matters for caches
            contender = contenders[name]
            out[:] = values
            comm.Barrier()
            begin = MPI.Wtime()
            contender()
            duration = comm.allreduce(MPI.Wtime() - begin, op=MPI.MAX)
            times[name].append(duration)
        if repeat >= _LEAST_REPEATS and comm.bcast(MPI.Wtime() - start) > seconds:
            break
    return {name: np.array(values[-(-len(values) // 10) :]) for name, values in times.items()}


@collective("comm")
def verify(comm: MPI.Intracomm, out: NDArray[np.float32], codec: str) -> tuple[float, float]:
    """Compare a sum with one in float64, and the bytes of all ranks.

    Collective over comm.

    Returns:
        The largest error of any value, and what the codec may lose.

    Raises:
        CodecError: the error is larger, or the bytes differ.
    """
    expected, ranks = _expected(comm.Get_size()), comm.Get_size()
    error = 0.0
    for start in range(0, out.size, _PERIOD):
        part = out[start : start + _PERIOD]
        error = max(error, float(np.abs(part - expected[: part.size]).max()))
    # A value travels once from every node and once as a sum that may be as large as all together.
    largest = float(np.abs(_table()).max())
    # What powersgd leaves out of a column is no longer than the column.
    lost = 2.5 * _TRAVEL_ERROR[codec] if codec in _TRAVEL_ERROR else float(np.sqrt(matrix_shapes(out.size)[0][0]))
    bound = largest * ranks * (lost + ranks * 2.0**-23)
    if not error <= bound:
        raise CodecError(f"bench: {codec} is wrong: expected errors of at most {bound:.3g}, found {error:.3g}")
    checksums = np.array([_checksum(out)], np.uint64)
    lowest, highest = np.empty_like(checksums), np.empty_like(checksums)
    comm.Allreduce(checksums, lowest, MPI.MIN)
    comm.Allreduce(checksums, highest, MPI.MAX)
    if lowest[0] != highest[0]:
        raise CodecError(f"bench: {codec}: ranks ended with different bytes")
    return error, bound


def _checksum(values: NDArray[np.float32]) -> np.uint64:
    """Return a sum over words that depends on their places."""
    words = values.view(np.uint32)
    total = np.uint64(0)
    for start in range(0, words.size, _PERIOD):
        part = words[start : start + _PERIOD].astype(np.uint64)
        with np.errstate(over="ignore"):
            total += (part * (np.arange(part.size, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(start + 1))).sum()
    return total


def _table() -> NDArray[np.float32]:
    random = np.random.default_rng(7)
    return np.clip(random.standard_normal(_PERIOD), -4, 4).astype(np.float32)


def _values(rank: int, size: int) -> NDArray[np.float32]:
    return np.resize(np.roll(_table(), -rank * _SHIFT), size)


def _expected(ranks: int) -> NDArray[np.float64]:
    table = _table().astype(np.float64)
    expected: NDArray[np.float64] = np.sum([np.roll(table, -rank * _SHIFT) for rank in range(ranks)], axis=0)
    return expected


_HEADER = (
    f"{'codec':<8}{'size':>10}{'time, ms':>11}{'plain':>10}{'ratio':>8}{'to best':>9}{'algbw':>8}{'busbw':>8}{'sent, MB':>11}"
    f"{'error':>10}"
)


def _row(m: Measurement) -> str:
    return (
        f"{m.codec:<8}{_size_name(m.nbytes):>10}{1e3 * m.seconds:>11.3f}{1e3 * m.plain_seconds:>10.3f}{m.ratio:>8.2f}"
        f"{m.to_best:>9.2f}{m.algbw_gbs:>8.3f}{m.busbw_gbs:>8.3f}{m.sent_nbytes / 1e6:>11.3f}{m.largest_error:>10.2g}"
    )


def _size_name(nbytes: int) -> str:
    for unit, factor in (("MB", 10**6), ("KB", 10**3)):
        if nbytes >= factor:
            return f"{nbytes / factor:g} {unit}"
    return f"{nbytes} B"
