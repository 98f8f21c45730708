"""Cases of FedBuff."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A task, and the same thing said to the reference."""

    training: dict[str, Any] = field(default_factory=dict)
    local: dict[str, Any] = field(default_factory=dict)
    server: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join(["fedbuff", *map(str, self.training.values())])


ALGORITHM = "fedbuff"
CASES = [
    Case(),
    Case({"server_learning_rate": 0.5}, server={"rate": 0.5}),
    Case(
        {"server_optimiser": "momentum", "server_learning_rate": 0.1},
        server={"kind": "momentum", "beta1": 0.9, "rate": 0.1},
    ),
    Case({"local_momentum": 0.6}, {"momentum": 0.6}),
    Case({"local_optimiser": "adam"}, {"adam": True}),
]
