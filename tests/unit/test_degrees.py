"""Degrees and thresholds keep their promises: enumerated, sampled, refused out of reach."""

from __future__ import annotations

import hashlib
import math
from itertools import combinations

import numpy as np
import pytest

from secagg.degrees import (
    GRINDING_BITS,
    ThreatModel,
    evaluate,
    failure_log2,
    plan_cohort,
    security_log2,
)
from secagg.errors import ConfigurationError
from secagg.graph import Graph
from secagg.tails import tail_log2


@pytest.mark.parametrize(("population", "marked", "drawn"), [(9, 3, 4), (8, 6, 5), (7, 0, 3)])
def test_tails_are_what_counting_every_draw_gives(population: int, marked: int, drawn: int) -> None:
    draws = [
        sum(place < marked for place in draw) for draw in combinations(range(population), drawn)
    ]
    for at_least in range(-1, drawn + 3):
        share = sum(found >= at_least for found in draws) / len(draws)
        bound = tail_log2(population, marked, drawn, at_least)
        assert 2.0**bound == pytest.approx(share, rel=1e-8)
        assert 2.0**bound >= share


def _parts(stay: set[int], size: int, half: int) -> list[set[int]]:
    """Connected parts of the survivors on a circle of which neighbours lie within half places."""
    left, parts = set(stay), []
    while left:
        part, todo = set(), [left.pop()]
        while todo:
            at = todo.pop()
            part.add(at)
            near = {(at + step) % size for step in range(-half, half + 1)} & left
            left -= near
            todo += near
        parts.append(part)
    return parts


@pytest.mark.parametrize(
    ("size", "corrupt", "half", "needed"),
    [(9, 1, 2, 3), (9, 3, 2, 4), (9, 4, 2, 4), (11, 4, 2, 4), (9, 2, 1, 2)],
)
def test_the_security_bound_covers_every_drop_out_pattern(
    size: int, corrupt: int, half: int, needed: int
) -> None:
    """All places of the corrupt devices and all drop-outs, on small circles."""
    degree = 2 * half
    broken = total = 0
    for chosen in combinations(range(size), corrupt):
        total += 1
        near = [
            sum((at + step) % size in chosen for step in range(-half, half + 1) if step)
            for at in range(size)
        ]
        honest = [at for at in range(size) if at not in chosen]
        if any(degree + near[at] >= 2 * needed for at in honest):
            broken += 1
            continue
        broken += _some_part_opens(size, half, needed, honest, near)
    assert broken / total <= 2.0 ** security_log2(size, corrupt, degree, needed)


def _some_part_opens(size: int, half: int, needed: int, honest: list[int], near: list[int]) -> bool:
    """Whether, after some drop-outs, a part that is not all survivors opens by itself."""
    for mask in range(1, 1 << len(honest)):
        stay = {at for bit, at in enumerate(honest) if mask >> bit & 1}
        parts = _parts(stay, size, half)
        for part in parts if len(parts) > 1 else ():
            holders = [
                near[at]
                + sum((at + step) % size in stay for step in range(-half, half + 1) if step)
                for at in part
            ]
            if min(holders) >= needed:
                return True
    return False


def test_random_drop_outs_end_no_more_cohorts_than_predicted() -> None:
    """Monte Carlo on real graphs, fixed seed; the bound is loose by the union over devices."""
    size, degree, needed, lost, rounds = 200, 30, 20, 30, 400
    generator = np.random.Generator(np.random.Philox(7))
    failed = 0
    for number in range(rounds):
        graph = Graph(size, degree, hashlib.sha256(b"%d" % number).digest())
        gone = set(generator.permutation(size)[:lost].tolist())
        failed += any(
            sum(other not in gone for other in graph.neighbours(index)) < needed
            for index in range(size)
        )
    predicted = 2.0 ** failure_log2(size, lost, degree, needed)
    assert 0 < failed / rounds <= predicted
    assert predicted < 1


@pytest.mark.parametrize(
    ("clients", "corrupt", "dropouts", "degree", "threshold"),
    [(1000, 100, 100, 138, 102), (5000, 500, 500, 176, 130), (10_000, 1000, 1000, 184, 136)],
)
def test_plans_of_large_cohorts(
    clients: int, corrupt: int, dropouts: int, degree: int, threshold: int
) -> None:
    model = ThreatModel(clients, corrupt, dropouts)
    plan = plan_cohort(model)
    assert (plan.degree, plan.threshold) == (degree, threshold)
    assert plan.ground_log2 <= -40
    assert plan.ground_log2 == plan.security_log2 + GRINDING_BITS
    assert plan.failure_log2 <= -20
    assert evaluate(model, degree - 2) is None, "no two neighbours fewer would do"
    lower = security_log2(clients, corrupt, degree, threshold - 1)
    assert lower > -(40 + GRINDING_BITS), "no smaller threshold would do"


def test_asking_for_more_never_costs_fewer_neighbours() -> None:
    base = plan_cohort(ThreatModel(1000, 100, 100)).degree
    assert plan_cohort(ThreatModel(1000, 150, 100)).degree >= base
    assert plan_cohort(ThreatModel(1000, 100, 150)).degree >= base
    assert plan_cohort(ThreatModel(1000, 100, 100, security_bits=80)).degree >= base
    assert plan_cohort(ThreatModel(1000, 100, 100, correctness_bits=40)).degree >= base


def test_small_cohorts_have_the_complete_graph_and_no_luck_in_it() -> None:
    plan = plan_cohort(ThreatModel(100, 10, 10))
    assert (plan.degree, plan.threshold) == (99, 55)
    assert plan.security_log2 == plan.failure_log2 == -math.inf


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ThreatModel(1, 0, 0), "cohort-size"),
        (ThreatModel(10_001, 0, 0), "cohort-size"),
        (ThreatModel(10, 10, 0), "corrupt-range"),
        (ThreatModel(10, 0, -1), "corrupt-range"),
        (ThreatModel(1000, 100, 100, security_bits=0), "security-bits"),
        (ThreatModel(1000, 100, 100, correctness_bits=65), "security-bits"),
        (ThreatModel(6, 1, 2), "dropouts-not-tolerated"),
        (ThreatModel(6, 5, 0), "threshold-unreachable"),
        (ThreatModel(1000, 300, 350), "confirmations-unreachable"),
        (ThreatModel(10_000, 2000, 2000), "degree-unreachable"),
    ],
)
def test_what_cannot_be_reached_is_refused_by_name(model: ThreatModel, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan_cohort(model)
    assert caught.value.reason == reason
