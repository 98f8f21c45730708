"""What a step on a grid costs in loss: quality runs as computed, and as the service adopts them.

    python -m benchmarks.grid_losses --rows FFA-LoRA,FedAvg,RoLoRA,FedSVD --epsilon 3

Model tiny, six devices, eight gradient steps, the rates and seeds of docs/algorithms.md, the same
coins in both runs. Minutes for each row; see :mod:`benchmarks.quality`.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from typing import Any

from aggregator.algorithms import Step, StepInput, server_step
from aggregator.algorithms.rounding import rounded
from benchmarks import quality
from benchmarks.quality_plan import Key, Results

_RESULTS = quality.RESULTS / "tiny-6x8.jsonl"
_SEEDS = 5


def adopted(given: StepInput[Any]) -> Step:
    """The step as the service releases it."""
    step = server_step(given)
    return replace(step, vector=rounded(given.manifest, given.vector, step.vector))


def losses(row: str, epsilon: float, rate: float, step: Any) -> list[float]:
    """Test loss of each seed."""
    quality.server_step = step  # type: ignore[attr-defined]
    keys = [Key("test", row, epsilon, rate, seed) for seed in range(_SEEDS)]
    return [float(quality.Run(key, "tiny", 6, 8).measure()["loss"]) for key in keys]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", default="FFA-LoRA", help="of the quality table, comma between")
    parser.add_argument("--epsilon", type=float, default=3.0)
    args = parser.parse_args()
    rates = {
        key.row: key.rate
        for key in Results(_RESULTS).all()
        if (key.phase, key.epsilon) == ("test", args.epsilon)
    }
    print(
        "| row | epsilon | as computed | on the grid | spread of the seeds |\n|---|---|---|---|---|"
    )
    for row in args.rows.split(","):
        before = losses(row, args.epsilon, rates[row], server_step)
        after = losses(row, args.epsilon, rates[row], adopted)
        means = f"{statistics.mean(before):.4f} | {statistics.mean(after):.4f}"
        print(
            f"| {row} | {args.epsilon:g} | {means} | {statistics.stdev(before):.3f} |", flush=True
        )


if __name__ == "__main__":
    main()
