"""Which runs the quality table needs, and what their results say so far.

The same for every row of a model: one list of rates. On tiny all of them are tried with one tuning
seed on a validation split, the best two with two more, and the one with the least mean validation
loss is run with the reported seeds on the test pairs. On SmolLM2, where a run takes a minute, a
row begins at one rate and goes to the neighbour in the list as long as one is better, with one
tuning seed.
Tuning sees no test pair and no reported seed. Results are lines of one JSON file that only grows;
what is there is not run again.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Plan:
    """``rates``: for every row; with a single one nothing is tuned. ``seeds``: that are reported.

    All ``rates``, or with ``start`` those on the way from there to one that is better than its
    neighbours, are tried with the first of ``tuning_seeds``, the best ``finalists`` with all.
    ``clip`` of an example's gradient: of every row under privacy; rates are per clip.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    rates: tuple[float, ...] = (1 / 16, 1 / 4, 1.0, 4.0, 16.0, 64.0)
    epsilons: tuple[float | None, ...] = (None, 8.0, 3.0)
    tuning_seeds: tuple[int, ...] = (100, 101, 102)
    finalists: int = 2
    start: float | None = None
    clip: float = 1.0


PLANS = {
    "tiny": Plan(),
    "smollm2": Plan(
        seeds=(0, 1, 2),
        rates=(1 / 16, 1 / 4, 1.0, 4.0, 16.0, 64.0, 256.0),
        tuning_seeds=(100,),
        start=4.0,
    ),
}
BATCH_PLANS = {
    "tiny": Plan(
        seeds=(0, 1, 2),
        rates=(1 / 2, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
        epsilons=(8.0,),
        tuning_seeds=(100,),
        start=4.0,
    ),
    "smollm2": Plan(
        seeds=(0, 1, 2),
        rates=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0),
        epsilons=(8.0, 3.0),
        tuning_seeds=(100,),
        start=16.0,
        clip=0.1,
    ),
}


@dataclass(frozen=True)
class Key:
    """One run. ``epsilon`` None: without privacy. Lines of before have no ``clip``: it was 1."""

    phase: Literal["tune", "test"]
    row: str
    epsilon: float | None
    rate: float
    seed: int
    clip: float = 1.0


Result = dict[str, Any]


class Results:
    """The results file; every read sees what other processes have added since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0
        self._found: dict[Key, Result] = {}

    def all(self) -> dict[Key, Result]:
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if line.endswith(b"\n"):  # else another process is in the middle of it
                        self._read += len(line)
                        record = json.loads(line)
                        named = {n: record[n] for n in Key.__annotations__ if n in record}
                        key = Key(**named)
                        self._found[key] = record
        return self._found

    def add(self, key: Key, result: Result) -> None:
        """One append, so that processes do not write into each other's lines."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(key) | result, separators=(",", ":")) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())


def loss_of(result: Result) -> float:
    """Infinite for a run that diverged."""
    loss = result.get("loss")
    return math.inf if loss is None or not math.isfinite(loss) else float(loss)


class Cell:
    """What is known of one row at one epsilon."""

    def __init__(
        self, plan: Plan, found: dict[Key, Result], row: str, epsilon: float | None
    ) -> None:
        self._plan = plan
        self._of = {k: r for k, r in found.items() if (k.row, k.epsilon) == (row, epsilon)}
        self.row, self.epsilon = row, epsilon
        self.refused = next((r["refused"] for r in self._of.values() if "refused" in r), None)

    @property
    def begun(self) -> bool:
        return bool(self._of)

    def finalists(self) -> tuple[float, ...] | None:
        """The best rates of the first tuning seed; None while one of its runs is missing."""
        if self._untried():
            return None
        losses = self._first_losses()
        return tuple(sorted(losses, key=lambda rate: losses[rate])[: self._plan.finalists])

    def _first_losses(self) -> dict[float, float]:
        """By rate, in ascending order: what the first tuning seed has found so far."""
        runs = {r: self._of.get(self._key("tune", r, self._first)) for r in self._plan.rates}
        return {rate: loss_of(run) for rate, run in sorted(runs.items()) if run is not None}

    def _untried(self) -> list[float]:
        """The rates that the first tuning seed has to run next."""
        rates, start, losses = sorted(self._plan.rates), self._plan.start, self._first_losses()
        if start is None:
            return [rate for rate in rates if rate not in losses]
        if start not in losses:
            return [start]
        best = rates.index(min(losses, key=lambda rate: losses[rate]))
        beside = [rates[i] for i in (best + 1, best - 1) if 0 <= i < len(rates)]
        return [rate for rate in beside if rate not in losses][:1]

    @property
    def rate(self) -> float | None:
        """The finalist with the least mean validation loss; None while a run is missing."""
        if len(self._plan.rates) == 1:
            return self._plan.rates[0]
        means = {}
        for rate in self.finalists() or ():
            runs = [self._of.get(self._key("tune", rate, s)) for s in self._plan.tuning_seeds]
            losses = [loss_of(run) for run in runs if run is not None]
            if len(losses) < len(runs):
                return None
            means[rate] = statistics.mean(losses)
        return min(means, key=lambda rate: means[rate], default=None)

    @property
    def at_the_edge(self) -> bool:
        """Whether the chosen rate is the least or the largest of those tried."""
        rates = self._plan.rates
        return len(rates) > 1 and self.rate in (min(rates), max(rates))

    def tests(self) -> tuple[Result, ...]:
        """The reported runs at the chosen rate, by seed."""
        if self.rate is None:
            return ()
        keys = [self._key("test", self.rate, seed) for seed in self._plan.seeds]
        return tuple(self._of[key] for key in keys if key in self._of)

    def missing(self) -> Iterator[Key]:
        """What has to run next, as far as it is decided."""
        if self.refused is not None:
            return
        wanted = []
        if len(self._plan.rates) > 1:
            wanted += [self._key("tune", rate, self._first) for rate in self._untried()]
            for final in self.finalists() or ():
                wanted += [self._key("tune", final, s) for s in self._plan.tuning_seeds[1:]]
        if self.rate is not None:
            wanted += [self._key("test", self.rate, seed) for seed in self._plan.seeds]
        yield from (key for key in wanted if key not in self._of)

    @property
    def _first(self) -> int:
        return self._plan.tuning_seeds[0]

    def _key(self, phase: Literal["tune", "test"], rate: float, seed: int) -> Key:
        return Key(phase, self.row, self.epsilon, rate, seed, self._plan.clip)


def missing(plan: Plan, found: dict[Key, Result], rows: Sequence[str]) -> list[Key]:
    """All that can run now: tuning before testing, seeds outermost, so that a stopped table is an
    even one."""
    cells = [Cell(plan, found, row, epsilon) for epsilon in plan.epsilons for row in rows]
    keys = [key for cell in cells for key in cell.missing()]
    return sorted(keys, key=lambda key: (key.phase != "tune", key.seed))


def cells(
    plan: Plan, results: Results, rows: Sequence[str]
) -> dict[tuple[str, float | None], Cell]:
    """By row and epsilon."""
    found = results.all()
    return {(row, e): Cell(plan, found, row, e) for row in rows for e in plan.epsilons}


def mean(cell: Cell) -> float:
    return statistics.mean(loss_of(run) for run in cell.tests())


def spread(cell: Cell) -> float:
    """Standard deviation over the seeds; 0 for a single one."""
    losses = [loss_of(run) for run in cell.tests()]
    return statistics.stdev(losses) if len(losses) > 1 and math.isfinite(sum(losses)) else 0.0
