"""The command line of `bench`. Nothing here may import NumPy; see `main`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

from lepton_mpi.config.schema import Config
from lepton_mpi.errors import ConfigError

CODECS: Final = ("exact", "bf16", "fp16", "int8", "int4", "sign1", "topk", "powersgd")
AUTO: Final = "auto"
_CODECS_HELP: Final = f"among {', '.join(CODECS)}, and auto, which chooses between plain MPI, exact and bf16 (all)"
_SIZES: Final = ("4KB", "64KB", "1MB", "16MB", "64MB", "256MB")


@final
@dataclass(frozen=True)
class BenchArguments:
    """What `bench allreduce` was asked.

    Attributes:
        codecs: codecs to measure.
        sizes: bytes of float32 values to sum.
        json: whether to print JSON.
        seconds: time for each size.
        ranks_per_node: treat so many consecutive ranks as a node; 0 asks MPI.
        chunk_mib, depth: of the engine; 0: its own choice.
        config: as the other commands have it; nothing can be set.
    """

    codecs: tuple[str, ...] = CODECS
    sizes: tuple[int, ...] = ()
    json: bool = False
    seconds: float = 2.0
    ranks_per_node: int = 0
    chunk_mib: float = 0.0
    depth: int = 0
    config: Config = field(default_factory=Config)


def read_bench_arguments(options: argparse.Namespace) -> BenchArguments:
    """Return what `bench` was asked. Local.

    Raises:
        ConfigError: a size or another number is impossible.
    """
    if min(options.seconds, options.ranks_per_node, options.chunk_mib, options.depth) < 0:
        raise ConfigError("command line: bench: expected numbers of at least 0")
    return BenchArguments(
        codecs=tuple(options.codecs),
        sizes=parse_sizes(options.sizes),
        json=options.json,
        seconds=options.seconds,
        ranks_per_node=options.ranks_per_node,
        chunk_mib=options.chunk_mib,
        depth=options.depth,
    )


def parse_sizes(words: Sequence[str]) -> tuple[int, ...]:
    """Return sizes in bytes from words such as 4KB, 100MB (powers of ten) or 8192. Local.

    Raises:
        ConfigError: a word is no size, or not of whole float32 values.
    """
    sizes = []
    for word in words:
        number, factor = word.upper().removesuffix("B"), 1
        for letter, power in (("K", 10**3), ("M", 10**6), ("G", 10**9)):
            if number.endswith(letter):
                number, factor = number[:-1], power
        try:
            size = float(number) * factor
        except ValueError:
            size = 0.0
        if size < 4 or size % 4:
            raise ConfigError(f"command line: bench: expected a size of whole float32 values such as 4KB, received {word}")
        sizes.append(int(size))
    return tuple(sizes)


def add_bench_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `bench` to a parser. Local."""
    bench = commands.add_parser(
        "bench",
        help="measure the compressed all-reduce against MPI_Allreduce on these ranks",
        description="Sum arrays over all ranks with every codec and with MPI_Allreduce, in turns. Every sum is compared with one "
        "in float64, and the bytes of all ranks with each other. ratio: time of MPI_Allreduce / ours; algbw: GB/s of float32; "
        "busbw: algbw 2 (P - 1) / P; sent: bytes that a rank sent to other nodes.",
    )
    bench.add_argument("what", choices=("allreduce",), help="what to measure")
    bench.add_argument("--codecs", nargs="+", choices=(*CODECS, AUTO), default=(*CODECS, AUTO), metavar="C", help=_CODECS_HELP)
    bench.add_argument("--sizes", nargs="+", default=_SIZES, metavar="S", help=f"bytes of an array ({' '.join(_SIZES)})")
    bench.add_argument("--seconds", type=float, default=2.0, metavar="T", help="time for each size (2)")
    bench.add_argument("--ranks-per-node", type=int, default=0, metavar="G", help="treat G consecutive ranks as a node; 0: ask MPI")
    bench.add_argument("--chunk-mib", type=float, default=0.0, metavar="M", help="chunk of the pipeline; 0: the default")
    bench.add_argument("--depth", type=int, default=0, metavar="D", help="chunks on their way at a time; 0: the default")
    bench.add_argument("--json", action="store_true", help="print one JSON object")
