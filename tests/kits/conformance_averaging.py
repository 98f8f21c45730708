"""Cases of the algorithms that average changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A task, and the same thing said to the reference."""

    algorithm: str
    training: dict[str, Any] = field(default_factory=dict)
    local: dict[str, Any] = field(default_factory=dict)
    server: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.algorithm, *map(str, self.training.values())])


ADAPTIVE = {"server_tau": 0.1, "server_learning_rate": 0.3}
REFERENCE = {"tau": 0.1, "rate": 0.3}
CASES = [
    Case("fedavg"),
    Case("fedavg", {"server_learning_rate": 0.5}, server={"rate": 0.5}),
    Case("fedavg", {"local_momentum": 0.6}, {"momentum": 0.6}),
    Case("fedavg", {"local_optimiser": "adam"}, {"adam": True}),
    Case("fedprox", {"proximal_mu": 0.7}, {"mu": 0.7}),
    Case("fedavgm", {}, server={"kind": "momentum", "beta1": 0.9}),
    Case("fedadagrad", ADAPTIVE, server={"kind": "adagrad", **REFERENCE}),
    Case("fedadam", ADAPTIVE, server={"kind": "adam", "beta1": 0.9, "beta2": 0.99, **REFERENCE}),
    Case("fedyogi", ADAPTIVE, server={"kind": "yogi", "beta1": 0.9, "beta2": 0.99, **REFERENCE}),
    Case("fednova"),
    Case("fednova", {"local_momentum": 0.6}, {"momentum": 0.6}),
    Case("fednova", {"proximal_mu": 0.7}, {"mu": 0.7}),
]
