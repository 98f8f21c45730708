"""``secagg simulate``: many rounds of the real protocol with seeded drop-outs, checked exactly."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from secagg import ring
from secagg.errors import ConfigurationError
from secagg.graph.degrees import CohortPlan, ThreatModel, assess, plan_rules, safest_threshold
from secagg.graph.harary import is_complete
from secagg.limits import COMPLETE_GRAPH_MAX
from secagg.simulation.cohort import Aggregator, CohortResult, Hooks, drive
from secagg.simulation.plan import LocalRounds, Plan, lost
from secagg.simulation.task import SeededBytes, SimulatedTask
from secagg.simulation.workers import WorkerRounds


@dataclass(frozen=True)
class SimulationResult:
    """What a simulation showed.

    Attributes:
        exact: every released sum equals the sum of its contributors' inputs in the ring, and
            every contributor is in it once.
        rounds, released, aborted: cohorts in all, and how they ended.
        survivors: contributors per released round.
        predicted: what degree and threshold promise; ``aborted / rounds`` should be at most about
            2^``predicted.failure_log2``, since nothing but random drop-outs goes wrong here.
        digest: hex; equal for equal arguments, on any machine and any number of processes.
    """

    exact: bool
    rounds: int
    released: int
    aborted: int
    survivors: tuple[int, ...]
    predicted: CohortPlan
    digest: str


def simulate(
    clients: int,
    length: int,
    dropout: float,
    rounds: int,
    seed: int = 0,
    bits: int = 32,
    processes: int = 1,
    corrupt: float = 0.1,
    degree: int = 0,
    threshold: int = 0,
    on_phase: Callable[[int, str], None] | None = None,
) -> SimulationResult:
    """Run ``rounds`` cohorts of ``clients`` devices through the real machines.

    Args:
        length: coordinates of a vector.
        dropout: fraction of the devices that is lost in each round, each at a seeded step.
        seed: replays the same vectors, drop-outs, decisions and sums.
        bits: ring width.
        processes: worker processes for the devices; 1 keeps everything in this one.
        corrupt: fraction of the devices that the threshold assumes to be corrupt.
        degree: of the graph of more than 128 devices; 0: what ``secagg.graph.degrees`` derives.
        threshold: on that graph; 0: with a degree of one's own the largest that random drop-outs
            leave 2^-20, else the derived one.
        on_phase: is told round number and phase as each phase begins.

    Raises:
        ConfigurationError: ``simulation-parameters``, ``degree-unused``, or no degree or threshold
            exists for this size.
    """
    if clients < 2 or length < 1 or not 0 <= dropout < 1 or rounds < 1 or processes < 1:
        raise ConfigurationError(
            "simulation-parameters",
            "There is no such simulation.",
            expected="clients >= 2, length >= 1, 0 <= dropout < 1, rounds >= 1, processes >= 1",
            found=(clients, length, dropout, rounds, processes),
        )
    model = ThreatModel(clients, int(corrupt * clients), lost(clients, dropout))
    degree, threshold = _graph(model, degree, threshold)
    predicted = assess(model, degree, threshold)
    plan = Plan(clients, length, dropout, seed, bits, model.corrupt, degree, threshold)
    task = plan.task()
    pool: LocalRounds | WorkerRounds = LocalRounds(plan, task)
    if processes > 1:
        pool = WorkerRounds(plan, min(processes, clients))
    with contextlib.closing(pool):
        results = [
            _run_round(
                plan, task, pool, number, Hooks(phase=on_phase and partial(on_phase, number))
            )
            for number in range(rounds)
        ]
    digest = hashlib.sha256(b"".join(result.digest for result in results))
    survivors = tuple(len(result.survivors) for result in results if result.total is not None)
    return SimulationResult(
        exact=all(_is_exact(plan, number, result) for number, result in enumerate(results)),
        rounds=rounds,
        released=len(survivors),
        aborted=rounds - len(survivors),
        survivors=survivors,
        predicted=predicted,
        digest=digest.hexdigest(),
    )


def _graph(model: ThreatModel, degree: int, threshold: int) -> tuple[int, int]:
    """Degree and threshold of the task; (0, 0) for the complete graph."""
    if is_complete(model.clients, degree or 2):
        if degree or threshold:
            raise ConfigurationError(
                "degree-unused",
                f"Cohorts of at most {COMPLETE_GRAPH_MAX} devices, or of one more than the degree, "
                "have the complete graph.",
                expected="no degree and no threshold",
                found=(degree, threshold),
            )
        return 0, 0
    if not degree:
        survivors = model.clients - model.dropouts
        return plan_rules(model.clients, model.clients, survivors, model.corrupt)
    return degree, threshold or safest_threshold(model, degree)


def _run_round(
    plan: Plan,
    task: SimulatedTask,
    pool: LocalRounds | WorkerRounds,
    round_number: int,
    hooks: Hooks,
) -> CohortResult:
    cohort = SeededBytes(plan.seed, "cohort", round_number)(32)
    adverts = pool.advertise(round_number)
    aggregator = Aggregator(task, adverts, cohort=cohort, attempt=0, hooks=hooks, keep_events=False)
    return drive(aggregator, pool)


def _is_exact(plan: Plan, round_number: int, result: CohortResult) -> bool:
    if result.total is None:
        return True
    expected = np.zeros(plan.length, np.uint64)
    for number in result.survivors:
        expected += plan.vector(round_number, number).view(np.uint64)  # mod 2^64, so mod 2^bits
    lanes = expected.astype(ring.lane_dtype(plan.bits)) & ring.ring_mask(plan.bits)
    return np.array_equal(ring.centred(lanes, plan.bits), result.total)
