"""Cases of the algorithms that send sums."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dp.contracts import SegmentSpec

CLIP = 2.0  # cuts about half of the examples' gradients at zero
DISTRIBUTED = {
    "privacy": "distributed",
    "clip": CLIP,
    "examples_max": 16,
    "sampling_rate": 1.0,
    "noise_multiplier": 3.0,
}


@dataclass(frozen=True)
class Case:
    algorithm: str
    training: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.algorithm, *map(str, self.training.values())])

    @property
    def is_distributed(self) -> bool:
        return self.changes.get("privacy") == "distributed"


DIRECTIONS, PERTURBATION = 12, 0.01
SLOPES = {"local_steps": 1, "directions": DIRECTIONS, "server_learning_rate": 0.5}
UNIT = 6  # examples that count as weight 1, and the most that an evaluation uses
CASES = [
    Case("fedsgd", {"local_steps": 1, "server_learning_rate": 0.4, "batch_size": 5}, DISTRIBUTED),
    Case("zeroth-order", SLOPES),
    Case("zeroth-order", {**SLOPES, "weight_unit": UNIT}),
    Case("zeroth-order", {**SLOPES, "batch_size": 5}, DISTRIBUTED),
    Case("evaluation", {"local_steps": 1, "weight_unit": UNIT}),
    Case("sum", {}, {"segments": (SegmentSpec(name="counts", length=5, clip=30.0),)}),
]
