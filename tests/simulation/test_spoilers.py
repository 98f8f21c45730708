"""What a spoiler that nobody can name costs, and what honest drop-outs pay: strikes, simulated.

Time is counted, not waited for. All devices of a fleet are always ready; one cohort forms a minute.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field, replace

import pytest

from aggregator.cohorts.choosing import WaitingDevice, choose
from aggregator.cohorts.strikes import Standing, Strike, eligible, forgiven, tiers
from secagg.manifest import CohortRules

MINUTE_S = 60.0
DAY_S = 86_400.0


def rules(size_min: int, size_max: int, survivors_min: int) -> CohortRules:
    return CohortRules(
        size_min=size_min,
        size_max=size_max,
        survivors_min=survivors_min,
        corrupt_max=0,
        silent_max=0,
    )


@dataclass
class Fleet:
    """``spoils``: devices that send a wrong vector when they like; asked with their number."""

    count: int
    rules: CohortRules
    spoilers: frozenset[int] = frozenset()
    patient: bool = False  # a spoiler behaves in every second cohort that it is in
    drop: float = 0.0  # chance that an honest device stops after Ready
    seed: int = 1
    steered: bool = True
    strikes: dict[int, list[Strike]] = field(default_factory=lambda: defaultdict(list))
    failed_at: list[float] = field(default_factory=list)
    released: int = 0
    idle: int = 0
    taken: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def run(self, rounds: int, step_s: float = MINUTE_S) -> Fleet:
        chance = random.Random(self.seed)
        since = {number: chance.random() for number in range(self.count)}
        for turn in range(1, rounds + 1):
            now = turn * step_s
            waiting = sorted(
                (WaitingDevice(str(n), b"", 0, at) for n, at in since.items()),
                key=lambda ready: ready.received_at,
            )
            standing = Standing(
                {str(n): found for n, found in self.strikes.items()} if self.steered else {}
            )
            free, _ = eligible(waiting, standing, now)
            found = (choose(tier, self.rules) for tier in tiers(free, standing, self.rules, now))
            members = [int(ready.session) for ready in next((f for f in found if f), ())]
            if not members:
                self.idle += 1
                continue
            for member in members:
                self.taken[member] += 1
                since[member] = now + chance.random()
            self.end(members, str(turn), now, chance)
        return self

    def end(self, members: list[int], cohort: str, now: float, chance: random.Random) -> None:
        bad = self.spoilers.intersection(members)
        if self.patient:
            bad = frozenset(n for n in bad if self.taken[n] % 2)
        silent = [n for n in members if chance.random() < self.drop]
        if bad:
            struck = members  # the sum is refused: everybody in it is in question
        elif len(members) - len(silent) < self.rules.survivors_min:
            struck = silent
        else:
            self.released += 1
            for member in members:
                found = self.strikes[member]
                self.strikes[member] = [
                    replace(strike, weight=forgiven(strike.weight, len(found))) for strike in found
                ]
            return
        self.failed_at.append(now)
        for member in struck:
            self.strikes[member].append(Strike(cohort, now))


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 10, 20])
@pytest.mark.parametrize("seed", range(2))
def test_one_spoiler_among_four_times_as_many_costs_few_releases(size: int, seed: int) -> None:
    """Five in the first day of a cohort a minute, whatever the size; unsteered 360."""
    fleet = Fleet(4 * size, rules(size, size, size - 1), frozenset((0,)), seed=seed).run(1_440)
    assert len(fleet.failed_at) <= 6
    assert fleet.released >= 1_434
    unsteered = Fleet(
        4 * size, rules(size, size, size - 1), frozenset((0,)), seed=seed, steered=False
    ).run(1_440)
    assert len(unsteered.failed_at) >= 300


@pytest.mark.parametrize("seed", range(2))
def test_a_spoiler_that_behaves_in_turn_does_not_wash_itself_clean(seed: int) -> None:
    fleet = Fleet(40, rules(10, 10, 9), frozenset((0,)), patient=True, seed=seed).run(1_440)
    assert len(fleet.failed_at) <= 7


@pytest.mark.parametrize("seed", range(2))
def test_everybody_else_comes_back(seed: int) -> None:
    """Honest devices that were in question take part about as often as those that were not."""
    fleet = Fleet(40, rules(10, 10, 9), frozenset((0,)), seed=seed).run(1_440)
    honest = [fleet.taken[number] for number in range(1, 40)]
    assert min(honest) >= 0.6 * sum(honest) / len(honest)
    assert fleet.taken[0] <= 8


def test_two_spoilers_cost_twice() -> None:
    fleet = Fleet(40, rules(10, 10, 9), frozenset((0, 1))).run(1_440)
    assert len(fleet.failed_at) <= 14


def test_large_cohorts_are_halved_until_the_spoiler_is_alone() -> None:
    """All wait at once and all are struck by the first failure: halves of them are tried."""
    fleet = Fleet(64, rules(4, 64, 4), frozenset((0,))).run(60)
    assert len(fleet.failed_at) <= 7
    assert fleet.released >= 50


def test_where_only_struck_devices_are_left_the_budget_burns_slowly_and_never_stops() -> None:
    """Five devices, cohorts of five, one spoils: 8 failures in the first day, then one a day."""
    fleet = Fleet(5, rules(5, 5, 4), frozenset((0,))).run(40 * 144, 10 * MINUTE_S)
    first_day = sum(at <= DAY_S for at in fleet.failed_at)
    last_days = sum(at > 30 * DAY_S for at in fleet.failed_at)
    assert first_day <= 8
    assert 9 <= last_days <= 12
    gaps = [b - a for a, b in zip(fleet.failed_at, fleet.failed_at[1:], strict=False)]
    assert max(gaps) <= DAY_S + 20 * MINUTE_S


def test_devices_that_stop_after_ready_go_last() -> None:
    """Two of sixteen always stop: cohorts of four that need three go on without them."""

    class Stops(Fleet):
        def end(self, members: list[int], cohort: str, now: float, chance: random.Random) -> None:
            silent = self.spoilers.intersection(members)
            if len(members) - len(silent) >= self.rules.survivors_min:
                self.released += 1
                return
            self.failed_at.append(now)
            for member in silent:
                self.strikes[member].append(Strike(cohort, now))

    fleet = Stops(16, rules(4, 4, 3), frozenset((0, 1))).run(1_440)
    assert len(fleet.failed_at) <= 7


@pytest.mark.parametrize("seed", range(2))
def test_honest_drop_outs_are_hardly_held_up(seed: int) -> None:
    """One in fifty stops after Ready by chance, and cohorts of ten bear one of them."""
    fleet = Fleet(40, rules(10, 10, 9), drop=0.02, seed=seed).run(1_440)
    calm = Fleet(40, rules(10, 10, 9), drop=0.02, seed=seed, steered=False).run(1_440)
    assert fleet.idle == 0
    assert fleet.released >= 0.99 * calm.released
    shares = sorted(fleet.taken[n] / calm.taken[n] for n in range(40))
    assert shares[2] >= 0.85  # all but the two unluckiest
    assert shares[0] >= 0.5
