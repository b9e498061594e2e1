"""Speed of the gradient codecs on one core, in GB/s of fp32 values, from cache and from memory.

    python benchmarks/codecs.py                    # prints one JSON object
    python benchmarks/codecs.py --codecs int8 sign1 --sizes-mib 1 64

The values are worked on in pieces of 1 MiB. With one piece it stays in the caches, and the time is the shortest of many
calls. With many (64 MiB is more than most last-level caches) every piece comes from memory, and the time is the median
over the pieces. Both pass over calls that other work on the machine made longer. Every function is checked against the
NumPy reference on the values that it is timed on, and the program ends with an error where they differ or, with
--require, where a codec misses its target.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from lepton_mpi.runtime.threads import limit_threads, usable_cores

limit_threads(1)  # before NumPy is loaded

import numpy as np  # noqa: E402

from lepton_mpi import native  # noqa: E402
from lepton_mpi.compress import reference, topk_reference  # noqa: E402
from lepton_mpi.compress.codec import CODECS, Codec, StochasticKey  # noqa: E402
from lepton_mpi.compress.powersgd import initial_q, orthogonalise  # noqa: E402

# GB/s of fp32 that encode and decode_add must reach.
TARGETS = {"int8": 6.0, "int4": 5.0, "sign1": 5.0}
PIECE_VALUES = 2**18  # 1 MiB
KEY = StochasticKey(seed=1, step=2, rank=3, phase=0)


def seconds_per_piece(call: Callable[[int], object], num_pieces: int, budget_s: float) -> float:
    """Return the time of a call on one piece: the shortest of many with one piece, the median over many pieces."""
    times: list[float] = []
    for index in range(num_pieces):  # touches all memory once
        call(index)
    end = time.perf_counter() + budget_s
    while len(times) < 2 * num_pieces or time.perf_counter() < end:
        for index in range(num_pieces):
            start = time.perf_counter()
            call(index)
            times.append(time.perf_counter() - start)
    return min(times) if num_pieces == 1 else float(np.median(times))


def speeds(calls: dict[str, Callable[[int], object]], x: np.ndarray, budget_s: float) -> dict[str, float]:
    """Return GB/s of each function of a piece of x [pieces, values]."""
    return {name: x[0].nbytes / seconds_per_piece(call, len(x), budget_s) / 1e9 for name, call in calls.items()}


def require_equal(what: str, received: np.ndarray, expected: np.ndarray) -> None:
    if not np.array_equal(received, expected):
        raise SystemExit(f"{what} differs from its NumPy reference")


def check_codec(codec: Codec, x: np.ndarray) -> None:
    """Compare bytes, values, sums and residuals with the reference."""
    payload, values = np.zeros(codec.encoded_nbytes(x.size), np.uint8), np.zeros_like(x)
    codec.encode(x, payload)
    expected = reference.REFERENCES[codec.name].decode(payload, x.size)
    require_equal(f"encode of {codec.name}", payload, reference.REFERENCES[codec.name].encode(x))
    codec.decode(payload, values)
    require_equal(f"decode of {codec.name}", values, expected)
    codec.decode(payload, values, add=True)
    require_equal(f"decode_add of {codec.name}", values, expected + expected)
    residual = x[::-1].copy()
    expected_payload, expected_residual = reference.encode_with_feedback(codec.name, x, residual)
    codec.encode_with_feedback(x, residual, payload)
    require_equal(f"encode_with_feedback of {codec.name}", payload, expected_payload)
    require_equal(f"residual of {codec.name}", residual, expected_residual)


def measure_codec(codec: Codec, x: np.ndarray, budget_s: float) -> dict[str, float]:
    check_codec(codec, x[0])
    payload = np.zeros((len(x), codec.encoded_nbytes(x.shape[1])), np.uint8)
    values, residual = np.zeros_like(x), np.zeros_like(x)
    calls: dict[str, Callable[[int], object]] = {
        "encode": lambda i: codec.encode(x[i], payload[i]),
        "decode": lambda i: codec.decode(payload[i], values[i]),
        "decode_add": lambda i: codec.decode(payload[i], values[i], add=True),
        "encode_with_feedback": lambda i: codec.encode_with_feedback(x[i], residual[i], payload[i]),
    }
    if native.codec_has_stochastic(codec.number):
        calls["encode_stochastic"] = lambda i: native.codec_encode_stochastic(
            codec.number, x[i], payload[i], **KEY._asdict(), first_element=0
        )
    return speeds(calls, x, budget_s)


def measure_topk(x: np.ndarray, share: float, budget_s: float) -> dict[str, float]:
    threshold = native.topk_threshold(x[0], share)
    values, residual = np.zeros_like(x), np.zeros_like(x)
    out = np.zeros((len(x), native.topk_max_nbytes(x.shape[1])), np.uint8)
    nbytes, num_values = native.topk_encode(x[0], threshold, out[0])
    payload = out[0, :nbytes].copy()
    require_equal("encode of topk", payload, topk_reference.encode(x[0], threshold))
    native.topk_decode(payload, values[0], False)
    require_equal("decode of topk", values[0], topk_reference.decode(payload, x.shape[1]))
    both_signs, turn = (x, -x), np.zeros(len(x), np.int64)

    def encode_with_feedback(i: int) -> None:
        """Take turns with the signs: else the residual would grow, and more values would reach the threshold each time."""
        native.topk_encode_with_feedback(both_signs[turn[i]][i], residual[i], threshold, out[i])
        turn[i] ^= 1

    calls: dict[str, Callable[[int], object]] = {
        "threshold": lambda i: native.topk_threshold(x[i], share),
        "encode": lambda i: native.topk_encode(x[i], threshold, out[i]),
        "decode": lambda i: native.topk_decode(payload, values[i], False),
        "decode_add": lambda i: native.topk_decode(payload, values[i], True),
        "encode_with_feedback": encode_with_feedback,
    }
    return {"share": num_values / x.shape[1], "ratio": x[0].nbytes / nbytes, **speeds(calls, x, budget_s)}


def measure_powersgd(x: np.ndarray, rank: int, budget_s: float) -> dict[str, float]:
    """Time the steps on a matrix with four times as many rows as columns, as those of a transformer's feed forward layer."""
    columns = int((x.size / 4) ** 0.5)
    matrix = x.reshape(-1)[: 4 * columns * columns].reshape(4 * columns, columns)
    shape, flat, owed = (4 * columns, columns, rank), matrix.reshape(-1), np.zeros(matrix.size, np.float32)
    q = np.ascontiguousarray(initial_q(1, "w", columns, rank).T).reshape(-1)
    p = np.zeros(rank * 4 * columns, np.float32)
    native.low_rank_project_rows(shape, flat, 0, q, p)
    expected = orthogonalise(np.ascontiguousarray(p.reshape(rank, -1).T))
    native.orthogonalise(p, rank)
    require_equal("orthogonalise of powersgd", p, np.ascontiguousarray(expected.T).reshape(-1))
    out, back = np.zeros_like(p), np.zeros_like(q)
    calls: dict[str, Callable[[int], object]] = {
        "project": lambda _: native.low_rank_project_rows(shape, flat, 0, q, out),
        "orthogonalise": lambda _: native.orthogonalise(p, rank),
        "backproject": lambda _: native.low_rank_project_columns(shape, flat, 0, p, back),
        "rebuild": lambda _: native.low_rank_rebuild(shape, flat, 0, p, q, 1.0, owed, 0.5),
    }
    ratio = matrix.size / (rank * 5 * columns)
    return {"rows": 4 * columns, "columns": columns, "ratio": ratio, **speeds(calls, matrix[None], budget_s)}


def missed(results: list[dict[str, object]]) -> list[str]:
    """Return in words which targets were missed."""
    return [
        f"{result['codec']} {name} of {result['mib']} MiB: {result[name]:.1f} GB/s, target {TARGETS[str(result['codec'])]}"
        for result in results
        for name in ("encode", "decode_add")
        if result["codec"] in TARGETS and float(str(result[name])) < TARGETS[str(result["codec"])]
    ]


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def read_arguments() -> argparse.Namespace:
    names = [codec.name for codec in CODECS] + ["topk", "powersgd"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", nargs="+", choices=names, default=names, help="which (all)")
    parser.add_argument("--sizes-mib", nargs="+", type=int, default=[1, 64], help="MiB of fp32 values (1 64)")
    parser.add_argument("--share", type=float, default=0.01, help="share of top-k (0.01)")
    parser.add_argument("--rank", type=int, default=4, help="rank of PowerSGD (4)")
    parser.add_argument("--budget-s", type=float, default=0.3, help="seconds for each function and size (0.3)")
    parser.add_argument("--require", action="store_true", help="fail where int8, int4 or sign1 miss their targets")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    results: list[dict[str, object]] = []
    for mib in arguments.sizes_mib:
        x = np.random.default_rng(1).standard_normal((mib, PIECE_VALUES), np.float32)
        for codec in CODECS:
            if codec.name in arguments.codecs:
                ratio = x[0].nbytes / codec.encoded_nbytes(x.shape[1])
                results.append({"codec": codec.name, "mib": mib, "ratio": ratio, **measure_codec(codec, x, arguments.budget_s)})
        if "topk" in arguments.codecs:
            results.append({"codec": "topk", "mib": mib, **measure_topk(x, arguments.share, arguments.budget_s)})
        if "powersgd" in arguments.codecs:
            results.append({"codec": "powersgd", "mib": mib, **measure_powersgd(x, arguments.rank, arguments.budget_s)})
    report = {
        "benchmark": "codecs",
        "unit": "GB/s of fp32 values, one core",
        "targets": TARGETS,
        "missed": missed(results),
        "results": results,
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "load_average": os.getloadavg()[0],
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    print(json.dumps(report, indent=2))
    if arguments.require and report["missed"]:
        sys.exit("targets missed")


if __name__ == "__main__":
    main()
