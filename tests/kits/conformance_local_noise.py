"""Cases with noise in every device's own steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EXAMPLES = (4, 9, 2, 6, 3, 7)
DEVICES = len(EXAMPLES)

CLIP, MULTIPLIER = 8.0, 2.0  # longer than any gradient here
LOCAL = {
    "privacy": "local",
    "clip": CLIP,
    "noise_multiplier": MULTIPLIER,
    "sampling_rate": 1.0,
}


@dataclass(frozen=True)
class Case:
    algorithm: str
    training: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.algorithm, *map(str, self.training.values())])

    @property
    def momentum(self) -> float:
        return self.training.get("local_momentum", 0.0)

    @property
    def mu(self) -> float:
        return self.training.get("proximal_mu", 0.0)


CASES = [
    Case("fedavg"),
    Case("fedavg", {"local_momentum": 0.6}),
    Case("fedprox", {"proximal_mu": 0.7}),
    Case("fednova", {"local_momentum": 0.6}),
    Case("fednova", {"proximal_mu": 0.7}),
    *[Case(name) for name in ("fedavgm", "fedadagrad", "fedadam", "fedyogi")],
    Case("fedbuff"),
    Case("scaffold", {"population": DEVICES}),
]
