"""Degrees and thresholds keep their promises: enumerated, sampled, refused out of reach."""

from __future__ import annotations

import hashlib
import math
from itertools import combinations

import numpy as np
import pytest

from secagg.errors import ConfigurationError
from secagg.graph import bounds
from secagg.graph.degrees import (
    ThreatModel,
    assess,
    evaluate,
    plan_cohort,
    plan_rules,
    safest_threshold,
)
from secagg.graph.harary import Graph
from secagg.graph.parameters import check_cohort
from secagg.graph.tails import either_log2, tail_log2
from secagg.limits import DEGREE_MAX, GRINDING_BITS


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


def test_the_union_of_events_is_rounded_up_and_never_above_one() -> None:
    assert 0.75 <= 2.0 ** either_log2(-1, -2) <= 0.75 * (1 + 1e-8)
    assert either_log2(-1, -1, -1) == 0.0
    assert either_log2(-math.inf, -300.0) == pytest.approx(-300.0)
    assert either_log2(-math.inf, -math.inf) == -math.inf


@pytest.mark.parametrize(("marked", "drawn"), [(12, 8), (40, 20), (3, 60)])
def test_tails_fall_as_the_population_grows(marked: int, drawn: int) -> None:
    """What lets one tail at the smallest cohort serve a whole range of sizes."""
    for at_least in range(1, drawn + 1):
        tails = [tail_log2(n, marked, drawn, at_least) for n in range(marked + drawn, 200)]
        assert tails == sorted(tails, reverse=True)


def _security(size: int, corrupt: int, degree: int, needed: int) -> float:
    return either_log2(
        bounds.opened_twice_log2(size, size, corrupt, degree, needed),
        bounds.cut_log2(size, size, corrupt, degree, needed),
    )


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
    assert broken / total <= 2.0 ** _security(size, corrupt, degree, needed)


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


def test_chosen_drop_outs_cut_no_more_circles_than_predicted() -> None:
    """Monte Carlo at a larger size against the strongest adversary of the proof.

    It sees the circle, and drops whatever it likes: then a part opens exactly if two disjoint
    windows of half the degree hold enough corrupt devices each. Fixed seed, weak parameters.
    """
    size, corrupt, degree, needed, rounds = 300, 60, 24, 18, 4_000
    half, window = degree // 2, needed - degree // 2
    generator = np.random.Generator(np.random.Philox(11))
    cut = twice = 0
    for _ in range(rounds):
        marks = np.zeros(size, np.int64)
        marks[generator.permutation(size)[:corrupt]] = 1
        sums = np.concatenate([[0], np.cumsum(np.concatenate([marks, marks[:degree]]))])
        heavy = np.flatnonzero(sums[half : size + half] - sums[:size] >= window)
        # Two disjoint ones with an honest place between them, both ways round.
        gaps = heavy[None, :] - heavy[:, None]
        cut += bool(np.any((gaps > half) & (gaps < size - half)))
        around = sums[half + 1 : size + half + 1] - sums[:size]
        near = around + np.roll(around, -half) - 2 * np.roll(marks, -half)
        honest = np.roll(marks, -half) == 0
        twice += bool(np.any(near[honest] >= 2 * needed - degree))
    bound = 2.0 ** bounds.cut_log2(size, size, corrupt, degree, needed)
    assert 0 < cut / rounds <= min(1.0, bound + 5 * math.sqrt(bound / rounds))
    bound = 2.0 ** bounds.opened_twice_log2(size, size, corrupt, degree, needed)
    assert 0 < twice / rounds <= min(1.0, bound + 5 * math.sqrt(bound / rounds))


@pytest.mark.slow
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
    predicted = 2.0 ** bounds.unopened_log2(size, lost, degree, needed)
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
    assert plan.security_log2 <= -40
    both = either_log2(plan.opened_twice_log2, plan.cut_log2)
    assert plan.security_log2 == pytest.approx(both + GRINDING_BITS)
    assert plan.failure_log2 <= -20
    assert evaluate(model, degree - 2) is None, "no two neighbours fewer would do"
    lower = _security(clients, corrupt, degree, threshold - 1)
    assert lower > -(40 + GRINDING_BITS), "no smaller threshold would do"


@pytest.mark.parametrize(
    ("clients", "corrupt", "dropouts", "degree"),
    [(200, 20, 20, 34), (500, 50, 50, 42), (1000, 100, 100, 48), (1000, 100, 300, 88)],
)
def test_semi_honest_degrees_are_the_published_ones(
    clients: int, corrupt: int, dropouts: int, degree: int
) -> None:
    """At 2^-40 and 2^-20; an active aggregator always takes more."""
    model = ThreatModel(clients, corrupt, dropouts, adversary="semi-honest")
    plan = plan_cohort(model)
    assert plan.degree == degree
    assert max(plan.opened_twice_log2, plan.cut_log2) <= -41
    assert plan.security_log2 == pytest.approx(
        either_log2(plan.opened_twice_log2, plan.cut_log2), abs=1e-6
    )
    assert evaluate(model, degree - 2) is None
    assert plan_cohort(ThreatModel(clients, corrupt, dropouts)).degree > degree


def test_random_drop_outs_disconnect_no_more_cohorts_than_predicted() -> None:
    """Monte Carlo of the semi-honest class: the honest survivors of a circle fall apart."""
    size, corrupt, dropouts, degree, rounds = 200, 50, 50, 12, 3_000
    generator = np.random.Generator(np.random.Philox(7))
    apart = 0
    for _ in range(rounds):
        places = np.flatnonzero(generator.permutation(size) >= corrupt + dropouts)
        gaps = np.diff(np.append(places, places[0] + size))
        apart += int(np.count_nonzero(gaps > degree // 2)) > 1
    bound = 2.0 ** bounds.cut_at_random_log2(size, corrupt, dropouts, degree)
    assert 0 < apart / rounds <= min(1.0, bound + 5 * math.sqrt(bound / rounds))


@pytest.mark.parametrize(
    ("size_min", "size_max", "survivors_min", "corrupt"),
    [(129, 129, 110, 10), (100, 180, 98, 8), (900, 1000, 810, 90), (1000, 1000, 900, 100)],
)
def test_one_degree_serves_every_size_of_a_manifest(
    size_min: int, size_max: int, survivors_min: int, corrupt: int
) -> None:
    degree, needed = plan_rules(size_min, size_max, survivors_min, corrupt)
    check_cohort(size_min, size_max, survivors_min, corrupt, degree, needed)
    for size in range(bounds.smallest_sparse(size_min, degree), size_max + 1):
        assert _security(size, corrupt, degree, needed) <= -(40 + GRINDING_BITS)
        lost = size * (size_min - survivors_min) // size_min
        assert bounds.unopened_log2(size, lost, degree, needed) <= -20
    if size_min == size_max:
        model = ThreatModel(size_min, corrupt, size_min - survivors_min)
        plan = plan_cohort(model)
        assert (plan.degree, plan.threshold) == (degree, needed)


def test_small_cohorts_need_no_degree() -> None:
    assert plan_rules(6, 128, 4, 0) == (0, 0)


def test_a_range_that_no_degree_serves_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan_rules(2000, 2100, 1500, 500)
    assert caught.value.reason == "degree-unreachable"
    with pytest.raises(ConfigurationError) as caught:
        plan_rules(0, 1000, 0, 0)
    assert caught.value.reason == "cohort-size"


def test_a_degree_is_the_circle_of_both_sides_at_most() -> None:
    assert DEGREE_MAX % 2 == 0
    assert plan_cohort(ThreatModel(1000, 100, 300)).degree <= DEGREE_MAX


def test_any_degree_and_threshold_can_be_assessed() -> None:
    model = ThreatModel(1000, 100, 100)
    assert assess(model, 138, 102) == plan_cohort(model)
    weak = assess(model, 60, 40)
    assert weak.security_log2 > -40
    assert assess(ThreatModel(1000, 100, 100), 1000, 0) == assess(model, 0, 0)
    assert assess(model, 0, 0).failure_log2 == -math.inf
    assert assess(ThreatModel(10, 0, 5), 0, 0).failure_log2 == 0.0
    assert assess(ThreatModel(1000, 400, 300), 138, 102).failure_log2 == 0.0, "no majority is left"


def test_the_safest_threshold_is_the_largest_that_random_drop_outs_leave() -> None:
    model = ThreatModel(1000, 100, 100)
    needed = safest_threshold(model, 100)
    assert bounds.unopened_log2(1000, 100, 100, needed) <= -20
    assert bounds.unopened_log2(1000, 100, 100, needed + 1) > -20
    with pytest.raises(ConfigurationError) as caught:
        safest_threshold(model, 10)
    assert caught.value.reason == "correctness-missed"


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
