"""What the same bits on every grid cost: training steps with train.reproducible against the fast mode, in turns.

    python benchmarks/reproducible.py                      # GPT and MLP on 1 and 2 ranks, prints one JSON list
    python benchmarks/reproducible.py --models gpt --ranks 1

Sizes and batches are those of benchmarks/training.py (GPT: 6 layers, width 384, 6 heads, context 256, bytes, 8 samples a rank).
`cost` is the share of time that a step takes longer. Rates are those of the last steps: the first one of a reproducible run is
usually done twice, to find the units of its sums. Both modes run with their defaults; the reproducible one also with one
chunk (`train.virtual_chunks = 1`), for those who never divide layers.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from datetime import UTC, datetime

from training import CASES, measure_ours

MODES = {
    "fast": (),
    "reproducible": ("--train.reproducible", "true"),
    "reproducible, 1 chunk": ("--train.reproducible", "true", "--train.virtual_chunks", "1"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=["gpt", "mlp"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="turns of each mode (3)")
    arguments = parser.parse_args()
    results = []
    for name in arguments.models:
        for ranks in arguments.ranks:
            found: dict[str, list[float]] = {mode: [] for mode in MODES}
            for _ in range(arguments.repeats):
                for mode, more in MODES.items():
                    found[mode].append(measure_ours(name, ranks, "fp32", more, steady=True))
            fast = statistics.median(found["fast"])
            results.append(
                {
                    "model": name,
                    "ranks": ranks,
                    "samples_per_second": {mode: round(statistics.median(values), 2) for mode, values in found.items()},
                    "cost": {mode: round(fast / statistics.median(values) - 1, 3) for mode, values in found.items()},
                    "repeats": arguments.repeats,
                }
            )
    machine = {"machine": platform.processor() or platform.machine(), "date": datetime.now(UTC).date().isoformat()}
    print(json.dumps([machine | result for result in results], indent=2))


if __name__ == "__main__":
    main()
