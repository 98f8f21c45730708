"""Cases of SCAFFOLD."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EXAMPLES = (4, 9, 2, 6, 3, 7)
DEVICES = len(EXAMPLES)


@dataclass(frozen=True)
class Case:
    """A task, and the same thing said to the reference."""

    training: dict[str, Any] = field(default_factory=dict)
    server: dict[str, Any] = field(default_factory=dict)
    population: int = DEVICES

    def __str__(self) -> str:
        return "-".join(["scaffold", *map(str, (self.population, *self.server.values()))])


ALGORITHM = "scaffold"
CASES = [
    Case(),
    Case({"server_learning_rate": 0.5}, {"server_rate": 0.5}),
    Case(population=9),  # three enrolled devices never come
]
