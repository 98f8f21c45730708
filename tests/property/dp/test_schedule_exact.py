"""Scheduled batches against exact enumeration: no adversary learns more than k releases tell.

A device holds integers in {-1, 0, 1} that an adversary picks anew in each round, by what it saw;
it also picks the device's cohorts, and the aborts after masking. A sum is taken modulo a small ring
with Skellam noise, so every transcript can be enumerated: its probability with the example x, and
without. The bound is the k-fold composition of one release at the clip, k = ceil(charges / period),
enumerated too. Each broken variant of docs/privacy.md exceeds it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dp.accounting.events import Event, SkellamRelease, composed, scheduled
from dp.accounting.statements import epsilon_of
from dp.schedule import part_of, participations
from tests.kits.divergences import skellam

Floats = NDArray[np.float64]
History = tuple[int, ...]  # of each round: whether its output lies in the upper half of the ring
EPSILONS = (0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 5.0)
EXACT = 1e-9


@cache
def noise(variance: int, ring: int) -> Floats:
    """Skellam noise modulo ``ring``."""
    reach = 64 * ring
    whole = skellam(variance, reach)
    return np.array([whole[(np.arange(-reach, reach + 1) % ring) == y].sum() for y in range(ring)])


def delta(p: Floats, q: Floats, epsilon: float) -> float:
    """Of a pair of transcripts, in the worse direction."""
    factor = math.exp(epsilon)
    one, other = np.maximum(p - factor * q, 0).sum(), np.maximum(q - factor * p, 0).sum()
    return float(max(one, other))


def bound(variances: Sequence[int], ring: int, epsilon: float) -> float:
    """Of releases at the clip, one after the other."""
    p, q = np.ones(1), np.ones(1)
    for variance in variances:
        still = noise(variance, ring)
        p, q = np.outer(p, np.roll(still, 1)).ravel(), np.outer(q, still).ravel()
    return delta(p, q, epsilon)


@dataclass(frozen=True)
class Adversary:
    """Everything that it picks, for each history of outputs."""

    takes: dict[History, bool]
    aborts: dict[History, bool]
    gradients: dict[History, tuple[int, ...]]


def histories(rounds: int) -> Iterator[History]:
    for length in range(rounds):
        yield from itertools.product((0, 1), repeat=length)


def at_random(rounds: int, places: int, seed: int) -> Adversary:
    coins = random.Random(seed)
    every = list(histories(rounds))
    return Adversary(
        takes={h: coins.random() < 0.8 for h in every},
        aborts={h: coins.random() < 0.2 for h in every},
        gradients={h: tuple(coins.choices((-1, 0, 1), k=places)) for h in every},
    )


def at_the_clip(rounds: int, places: int) -> Adversary:
    """Always the same device, nothing aborted, and every example at the clip."""
    every = list(histories(rounds))
    return Adversary(
        takes=dict.fromkeys(every, True),
        aborts=dict.fromkeys(every, False),
        gradients={h: (1,) * places for h in every},
    )


@dataclass
class Device:
    """What a device does with its charges. ``held``: which of its places are filled.

    ``fails``: training fails whenever this example is in the batch.
    """

    period: int
    held: tuple[bool, ...]
    seed: bytes
    fails: int | None = None
    count: int = 0
    kept: int = field(default=0, init=False)

    def batch(self) -> list[int]:
        part = self.count % self.period
        return [
            place
            for place, filled in enumerate(self.held)
            if filled and part_of(place, self.period, self.seed) == part
        ]

    def charge(self, gradients: Sequence[int], *, aborted: bool) -> int:
        """The mean of what can be seen of one cohort: nothing of an abort."""
        batch = self.batch()
        self.count += 1
        if self.fails in batch:
            return 0
        return 0 if aborted else self.sum(batch, gradients)

    def sum(self, batch: Sequence[int], gradients: Sequence[int]) -> int:
        return sum(gradients[place] for place in batch)


class CountsSuccess(Device):
    """The count moves when a contribution was made."""

    def charge(self, gradients: Sequence[int], *, aborted: bool) -> int:
        failed = self.fails in self.batch()
        seen = super().charge(gradients, aborted=aborted)
        self.count -= failed
        return seen


class RetriesUncounted(Device):
    """After an abort the part serves again; that the aborted sum was opened, nobody knew."""

    def charge(self, gradients: Sequence[int], *, aborted: bool) -> int:
        seen = super().charge(gradients, aborted=False)
        self.count -= aborted
        return seen


class Sorts(Device):
    """Parts of equal size, of the examples that are there, in order."""

    def batch(self) -> list[int]:
        there = [place for place, filled in enumerate(self.held) if filled]
        size = -(-len(there) // self.period)
        part = self.count % self.period
        return there[part * size : (part + 1) * size]


class Shuffles(Sorts):
    """The same in an order that a public seed gives for as many examples."""

    def batch(self) -> list[int]:
        there = [place for place, filled in enumerate(self.held) if filled]
        random.Random(f"{self.seed.hex()} {len(there)}").shuffle(there)
        size = -(-len(there) // self.period)
        part = self.count % self.period
        return there[part * size : (part + 1) * size]


class KeepsMomentum(Device):
    """What it sent before is in what it sends, without noise."""

    def sum(self, batch: Sequence[int], gradients: Sequence[int]) -> int:
        self.kept += super().sum(batch, gradients)
        return self.kept


class TwoIdentities(Device):
    """Two of them hold the same data, and both are in the cohort."""

    def sum(self, batch: Sequence[int], gradients: Sequence[int]) -> int:
        return 2 * super().sum(batch, gradients)


class Persons(Device):
    """Rows 2 p and 2 p + 1 are person p's: a person has a place and one clip, here of 1."""

    def sum(self, batch: Sequence[int], gradients: Sequence[int]) -> int:
        return sum(self.clipped(gradients[2 * p] + gradients[2 * p + 1]) for p in batch)

    def clipped(self, value: int) -> int:
        return max(-1, min(1, value))


class ClipsRows(Persons):
    """A person's rows are in one part, and each has a clip of its own."""

    def clipped(self, value: int) -> int:
        return value


class SchedulesRows(Device):
    """A person's rows are in parts of their own."""

    def batch(self) -> list[int]:
        part, rows = self.count % self.period, range(2 * len(self.held))
        return [r for r in rows if self.held[r // 2] and part_of(r, self.period, self.seed) == part]


Make = Callable[..., Device]


def means(make: Make, adversary: Adversary, rounds: int) -> dict[History, int]:
    """What the adversary's sums are without noise, for each history."""
    found: dict[History, int] = {}
    for history in itertools.product((0, 1), repeat=rounds - 1):
        device = make()
        for length in range(rounds):
            now = history[:length]
            taken = adversary.takes[now]
            found[now] = (
                device.charge(adversary.gradients[now], aborted=adversary.aborts[now])
                if taken
                else 0
            )
    return found


def transcripts(
    with_x: dict[History, int], without: dict[History, int], variances: Sequence[int], ring: int
) -> tuple[Floats, Floats]:
    """Probabilities of all transcripts, with the example and without it."""
    level: dict[History, tuple[Floats, Floats]] = {(): (np.ones(1), np.ones(1))}
    for variance in variances:
        still, after = noise(variance, ring), {}
        for history, (p, q) in level.items():
            p = np.outer(p, np.roll(still, with_x[history]))
            q = np.outer(q, np.roll(still, without[history]))
            half = ring // 2
            for upper, outputs in ((0, slice(0, half)), (1, slice(half, ring))):
                after[*history, upper] = p[:, outputs].ravel(), q[:, outputs].ravel()
        level = after
    return (
        np.concatenate([p for p, _ in level.values()]),
        np.concatenate([q for _, q in level.values()]),
    )


def pair(
    kind: type[Device],
    adversary: Adversary,
    period: int,
    variances: Sequence[int],
    ring: int,
    x: int = 0,
    *,
    held: Sequence[int] = range(6),
    seed: bytes = bytes(32),
    fails: int | None = None,
) -> tuple[Floats, Floats]:
    """Transcripts with the example at place ``x`` and without it, beside the others of ``held``."""
    found = []
    for places in ({*held, x}, {*held} - {x}):
        filled = tuple(place in places for place in range(max(*held, x) + 1))
        make = partial(kind, period, filled, seed, fails)
        found.append(means(make, adversary, len(variances)))
    p, q = transcripts(found[0], found[1], variances, ring)
    assert p.sum() == pytest.approx(1, abs=EXACT)
    assert q.sum() == pytest.approx(1, abs=EXACT)
    return p, q


def worst(*arguments: Any, **terms: Any) -> list[float]:
    """Delta of a :func:`pair` at each of ``EPSILONS``."""
    p, q = pair(*arguments, **terms)
    return [delta(p, q, epsilon) for epsilon in EPSILONS]


def bounds(period: int, variances: Sequence[int], ring: int) -> list[float]:
    """Of the k releases of least noise."""
    dearest = sorted(variances)[: participations(len(variances), period)]
    return [bound(dearest, ring, epsilon) for epsilon in EPSILONS]


SIZES = [(4, 12, period) for period in (1, 2, 3, 4)] + [(6, 6, period) for period in (2, 3, 4, 5)]


@pytest.mark.parametrize(("rounds", "ring", "period"), SIZES)
def test_no_adversary_learns_more_than_k_releases_tell(rounds: int, ring: int, period: int) -> None:
    variances = (1,) * rounds
    limits = bounds(period, variances, ring)
    for number in range(25):
        coins = random.Random(f"{rounds} {period} {number}")
        x, seed = coins.randrange(6), coins.randbytes(32)
        adversary = at_random(rounds, 6, coins.randrange(1 << 32))
        fails = x if number % 5 == 0 and _alone(x, period, seed) else None
        found = worst(Device, adversary, period, variances, ring, x, seed=seed, fails=fails)
        assert all(one <= most + EXACT for one, most in zip(found, limits, strict=True))


def _first(period: int) -> int:
    """The first place of the part that serves first."""
    return next(place for place in range(period) if part_of(place, period, bytes(32)) == 0)


def _alone(x: int, period: int, seed: bytes, places: int = 6) -> bool:
    """Whether no other example is in its part, which its failure would take out as well."""
    parts = [part_of(place, period, seed) for place in range(places)]
    return parts.count(parts[x]) == 1


@pytest.mark.parametrize(("rounds", "ring", "period"), SIZES)
def test_an_example_at_the_clip_attains_the_bound(rounds: int, ring: int, period: int) -> None:
    """That of the part which serves first; it is in every pass that has begun."""
    variances = (1,) * rounds
    first = _first(period)
    adversary = at_the_clip(rounds, 6)
    found = worst(Device, adversary, period, variances, ring, first)
    assert found == pytest.approx(bounds(period, variances, ring), abs=EXACT)


@pytest.mark.parametrize("variances", [(1, 2, 4, 2), (4, 1, 1, 3), (2, 2, 1, 4)])
@pytest.mark.parametrize("period", [1, 2, 3, 4])
def test_of_different_noise_the_k_of_least(variances: tuple[int, ...], period: int) -> None:
    limits = bounds(period, variances, 8)
    for number in range(25):
        adversary = at_random(4, 6, number)
        found = worst(Device, adversary, period, variances, 8, number % 6)
        assert all(one <= most + EXACT for one, most in zip(found, limits, strict=True))


@pytest.mark.parametrize("variances", [(1, 1, 1, 1), (1, 2, 4, 2)])
@pytest.mark.parametrize("period", [1, 2, 3, 4])
def test_the_accountant_is_not_below_the_enumeration(
    variances: tuple[int, ...], period: int
) -> None:
    counts: Counter[Event] = Counter(SkellamRelease(1, 1, variance) for variance in variances)
    event = composed(scheduled(counts, participations(4, period)))
    for x in range(6):
        p, q = pair(Device, at_the_clip(4, 6), period, variances, 12, x)
        for target in (1e-1, 1e-2, 1e-4):
            assert delta(p, q, epsilon_of(event, target)) <= target


def exceeds(found: Sequence[float], limits: Sequence[float]) -> bool:
    return max(one - most for one, most in zip(found, limits, strict=True)) > 0.01


@pytest.mark.parametrize("period", [2, 3, 4])
def test_a_count_that_moves_on_success_alone_exceeds_it(period: int) -> None:
    """One example that makes its training fail keeps its device at its part for good."""
    first = _first(period)
    others = [p for p in range(3 * period) if part_of(p, period, bytes(32)) != 0]
    terms = (at_the_clip(4, 3 * period), period, (1,) * 4, 12, first)
    limits = bounds(period, (1,) * 4, 12)
    assert exceeds(worst(CountsSuccess, *terms, held=others, fails=first), limits)
    assert not exceeds(worst(Device, *terms, held=others, fails=first), limits)


@pytest.mark.parametrize("period", [2, 3, 4])
def test_a_retry_that_is_not_counted_exceeds_it(period: int) -> None:
    """In one pass, its first part serves twice."""
    first, variances = _first(period), (1,) * period
    always = at_the_clip(period, 6)
    aborts = {history: len(history) == 0 for history in always.aborts}
    adversary = Adversary(always.takes, aborts, always.gradients)
    limits = bounds(period, variances, 12)
    assert exceeds(worst(RetriesUncounted, adversary, period, variances, 12, first), limits)
    assert not exceeds(worst(Device, adversary, period, variances, 12, first), limits)


@pytest.mark.parametrize("period", [2, 3, 4])
@pytest.mark.parametrize("kind", [Sorts, Shuffles])
def test_parts_that_follow_from_other_examples_exceed_it(kind: type[Device], period: int) -> None:
    """The others' gradients are not alike, so that it shows which of them are in a sum."""
    always = at_the_clip(4, 6)
    gradients = {history: (1, 1, 1, -1, -1, -1) for history in always.gradients}
    adversary = Adversary(always.takes, always.aborts, gradients)
    limits = bounds(period, (1,) * 4, 12)
    for each, over in ((kind, True), (Device, False)):
        found = [worst(each, adversary, period, (1,) * 4, 12, x) for x in range(6)]
        assert any(exceeds(one, limits) for one in found) == over


@pytest.mark.parametrize("period", [2, 3, 4])
def test_momentum_of_earlier_parts_exceeds_it(period: int) -> None:
    limits = bounds(period, (1,) * 4, 12)
    for kind, over in ((KeepsMomentum, True), (Device, False)):
        found = [worst(kind, at_the_clip(4, 6), period, (1,) * 4, 12, x) for x in range(6)]
        assert any(exceeds(each, limits) for each in found) == over


@pytest.mark.parametrize("period", [1, 2, 3, 4])
def test_two_identities_with_the_same_data_exceed_it(period: int) -> None:
    limits = bounds(period, (1,) * 4, 12)
    for kind, over in ((TwoIdentities, True), (Device, False)):
        found = [worst(kind, at_the_clip(4, 6), period, (1,) * 4, 12, x) for x in range(6)]
        assert any(exceeds(each, limits) for each in found) == over


@pytest.mark.parametrize("period", [2, 3, 4])
def test_a_charge_that_only_the_device_counts_exceeds_it(period: int) -> None:
    """A cohort that a ledger leaves out, though devices have counted it, moves a part nearer: of
    two sums that it shows one example may be in both, and ceil(2 / period) is 1."""
    first = _first(period)
    always = at_the_clip(period + 1, 4)
    aborts = {history: 0 < len(history) < period for history in always.aborts}
    adversary = Adversary(always.takes, aborts, always.gradients)
    found = worst(Device, adversary, period, (1,) * (period + 1), 6, first, held=range(4))
    assert exceeds(found, bounds(period, (1,) * 2, 6))
    assert not exceeds(found, bounds(period, (1,) * (period + 1), 6))


@pytest.mark.parametrize(("rounds", "ring", "period"), SIZES)
def test_all_rows_of_a_person_tell_no_more_than_k_releases(
    rounds: int, ring: int, period: int
) -> None:
    limits = bounds(period, (1,) * rounds, ring)
    adversaries = [at_the_clip(rounds, 12), *(at_random(rounds, 12, seed) for seed in range(4))]
    for adversary in adversaries:
        for x in range(0, 6, 2):
            found = worst(Persons, adversary, period, (1,) * rounds, ring, x)
            assert all(one <= most + EXACT for one, most in zip(found, limits, strict=True))


@pytest.mark.parametrize(("kind", "period"), [(ClipsRows, 1), (ClipsRows, 3), (SchedulesRows, 3)])
def test_rows_of_a_person_that_are_clipped_or_scheduled_apart_exceed_it(
    kind: type[Device], period: int
) -> None:
    """Even where they are in different parts, so that none of the sums holds both."""
    terms = (at_the_clip(3, 12), period, (1,) * 3, 12)
    limits = bounds(period, (1,) * 3, 12)
    apart = [x for x in range(6) if _part(2 * x, period) != _part(2 * x + 1, period)]
    for x in apart if kind is SchedulesRows else range(6):
        assert exceeds(worst(kind, *terms, x), limits)
        assert not exceeds(worst(Persons, *terms, x), limits)


def _part(place: int, period: int) -> int:
    return part_of(place, period, bytes(32))
