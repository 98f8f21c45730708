"""``simulate``: exact, replayable from its seed, the same over any number of processes."""

from __future__ import annotations

import math

import pytest

from secagg import server
from secagg.errors import ConfigurationError
from secagg.graph.degrees import ThreatModel, assess
from secagg.simulation import Aggregator, Drop, Hooks, SeededBytes, drive, simulate, workers
from secagg.simulation.plan import LocalRounds, Plan


def test_the_same_seed_replays_the_same_run() -> None:
    first = simulate(8, 5, 0.25, 3, seed=3)
    assert first == simulate(8, 5, 0.25, 3, seed=3)
    assert first.digest != simulate(8, 5, 0.25, 3, seed=4).digest


def test_worker_processes_do_not_change_what_happens() -> None:
    assert simulate(6, 4, 0.2, 2, seed=1, processes=2) == simulate(6, 4, 0.2, 2, seed=1)


def test_portions_of_messages_do_not_change_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_PORTION_MESSAGES", 2)
    assert simulate(7, 4, 0.2, 1, seed=1, processes=2) == simulate(7, 4, 0.2, 1, seed=1)


@pytest.mark.parametrize("bits", [8, 16, 21, 32, 33, 62])
def test_sums_are_exact_in_every_lane(bits: int) -> None:
    result = simulate(5, 70, 0.2, 2, seed=bits, bits=bits)
    assert result.exact
    assert result.released == result.rounds == 2


def test_dropouts_within_the_bound_never_stop_a_round() -> None:
    result = simulate(13, 3, 0.3, 6, seed=5)
    assert result.exact
    assert result.released == 6
    assert all(10 <= survivors <= 13 for survivors in result.survivors)
    assert len(set(result.survivors)) > 1


def test_dropouts_beyond_the_bound_abort_and_stay_exact() -> None:
    result = simulate(8, 3, 0.6, 4, seed=5)
    assert result.exact
    assert result.aborted > 0
    assert result.released + result.aborted == result.rounds == 4


@pytest.mark.parametrize(
    ("clients", "length", "dropout", "rounds", "processes"),
    [(1, 1, 0.0, 1, 1), (2, 0, 0.0, 1, 1), (2, 1, 1.0, 1, 1), (2, 1, 0.0, 0, 1), (2, 1, 0.0, 1, 0)],
)
def test_impossible_simulations_are_refused(
    clients: int, length: int, dropout: float, rounds: int, processes: int
) -> None:
    with pytest.raises(ConfigurationError, match="simulation-parameters"):
        simulate(clients, length, dropout, rounds, processes=processes)


@pytest.mark.slow
def test_a_weak_sparse_graph_fails_exactly_when_some_device_has_too_few_neighbours_left() -> None:
    """Cohorts of 130 on degree 8: failures are common enough to be seen, and are predicted.

    Many cohorts are opened, so that each has its circle; one that must fail and one that must not
    are carried to their end.
    """
    plan = Plan(130, 2, 0.1, seed=2, bits=32, corrupt=0, degree=8, threshold=5)
    task = plan.task()
    pool = LocalRounds(plan, task)
    expected: list[bool] = []
    while len(expected) < 12 or len(set(expected)) < 2:
        number = len(expected)
        cohort = SeededBytes(plan.seed, "cohort", number)(32)
        adverts = pool.advertise(number)
        aggregator = Aggregator(task, adverts, cohort=cohort, attempt=0, hooks=Hooks())
        graph = aggregator.state.facts.graph
        lost = {aggregator.index_of[device]: drop for device, drop in plan.drops(number).items()}
        opens = _opens(graph, plan, lost)
        if opens not in expected:
            result = drive(aggregator, pool)
            assert isinstance(result.state, server.Released) == opens
        expected.append(opens)
        assert number < 100, "both outcomes are common"
    bound = 2.0 ** assess(ThreatModel(130, 0, 13), 8, 5).failure_log2
    failures = expected.count(False) / len(expected)
    assert 0 < failures <= bound + 5 * math.sqrt(bound / len(expected))


def _opens(graph, plan: Plan, lost: dict[int, Drop]) -> bool:
    """Whether at each step every secret that may be needed has t holders among the neighbours."""

    def left(step: Drop) -> set[int]:
        return {i for i in range(plan.clients) if lost.get(i, Drop.NEVER) > step}

    def openable(owners: set[int], holders: set[int]) -> bool:
        return all(
            len(holders.intersection(graph.neighbours(owner))) >= plan.threshold for owner in owners
        )

    dealt, ready, confirmed = left(Drop.SHARE), left(Drop.CHECK), left(Drop.CONFIRM)
    return (
        openable(dealt, dealt)
        and openable(ready, left(Drop.UPLOAD))
        and openable(ready, confirmed)
        and openable(ready, left(Drop.UNMASK))
    )


@pytest.mark.slow
def test_the_derived_degree_and_what_it_promises_are_reported() -> None:
    result = simulate(130, 2, 0.02, 1, seed=1, corrupt=0.01)
    plan = result.predicted
    assert (result.exact, result.released, plan.degree < 129) == (True, 1, True)
    assert plan.security_log2 <= -40
    assert plan.failure_log2 <= -20


@pytest.mark.parametrize(
    ("clients", "dropout", "degree", "threshold", "reason"),
    [
        (20, 0.1, 4, 0, "degree-unused"),
        (20, 0.1, 0, 3, "degree-unused"),
        (130, 0.1, 7, 5, "graph-degree"),
        (130, 0.1, 8, 0, "correctness-missed"),
    ],
)
def test_degrees_that_mean_nothing_are_refused(
    clients: int, dropout: float, degree: int, threshold: int, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        simulate(clients, 1, dropout, 1, degree=degree, threshold=threshold)
