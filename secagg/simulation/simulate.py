"""``secagg simulate``: many rounds of the real protocol with seeded drop-outs, checked exactly."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass

import numpy as np

from secagg import ring
from secagg.errors import ConfigurationError
from secagg.simulation.cohort import Aggregator, CohortResult, Hooks, drive
from secagg.simulation.plan import LocalRounds, Plan
from secagg.simulation.task import SeededBytes, Task
from secagg.simulation.workers import WorkerRounds


@dataclass(frozen=True)
class SimulationResult:
    """What a simulation showed.

    Attributes:
        exact: every released sum equals the sum of its contributors' inputs in the ring, and
            every contributor is in it once.
        rounds, released, aborted: cohorts in all, and how they ended.
        survivors: contributors per released round.
        digest: hex; equal for equal arguments, on any machine and any number of processes.
    """

    exact: bool
    rounds: int
    released: int
    aborted: int
    survivors: tuple[int, ...]
    digest: str


def simulate(
    clients: int,
    length: int,
    dropout: float,
    rounds: int,
    seed: int = 0,
    bits: int = 32,
    processes: int = 1,
) -> SimulationResult:
    """Run ``rounds`` cohorts of ``clients`` devices through the real machines.

    Args:
        length: coordinates of a vector.
        dropout: fraction of the devices that is lost in each round, each at a seeded step.
        seed: replays the same vectors, drop-outs, decisions and sums.
        bits: ring width.
        processes: worker processes for the devices; 1 keeps everything in this one.

    Raises:
        ConfigurationError: ``simulation-parameters``, or no threshold exists for this size.
    """
    if clients < 2 or length < 1 or not 0 <= dropout < 1 or rounds < 1 or processes < 1:
        raise ConfigurationError(
            "simulation-parameters",
            "There is no such simulation.",
            expected="clients >= 2, length >= 1, 0 <= dropout < 1, rounds >= 1, processes >= 1",
            found=(clients, length, dropout, rounds, processes),
        )
    plan = Plan(clients, length, dropout, seed, bits)
    task = plan.task()
    pool: LocalRounds | WorkerRounds = LocalRounds(plan, task)
    if processes > 1:
        pool = WorkerRounds(plan, min(processes, clients))
    with contextlib.closing(pool):
        results = [_run_round(plan, task, pool, number) for number in range(rounds)]
    digest = hashlib.sha256(b"".join(result.digest for result in results))
    survivors = tuple(len(result.survivors) for result in results if result.total is not None)
    return SimulationResult(
        exact=all(_is_exact(plan, number, result) for number, result in enumerate(results)),
        rounds=rounds,
        released=len(survivors),
        aborted=rounds - len(survivors),
        survivors=survivors,
        digest=digest.hexdigest(),
    )


def _run_round(
    plan: Plan, task: Task, pool: LocalRounds | WorkerRounds, round_number: int
) -> CohortResult:
    cohort = SeededBytes(plan.seed, "cohort", round_number)(32)
    adverts = pool.advertise(round_number)
    aggregator = Aggregator(task, adverts, cohort=cohort, attempt=0, hooks=Hooks())
    return drive(aggregator, pool)


def _is_exact(plan: Plan, round_number: int, result: CohortResult) -> bool:
    if result.total is None:
        return True
    expected = np.zeros(plan.length, np.uint64)
    for number in result.survivors:
        expected += plan.vector(round_number, number).view(np.uint64)  # mod 2^64, so mod 2^bits
    lanes = expected.astype(ring.lane_dtype(plan.bits)) & ring.ring_mask(plan.bits)
    return np.array_equal(ring.centred(lanes, plan.bits), result.total)
