"""Skellam noise as post-processed Gaussian noise: the proof of docs/skellam.md, step by step, and
what is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from mpmath import mpf
from numpy.typing import NDArray

from dp.accounting import gaussian
from dp.accounting.events import (
    Composed,
    DiscreteGaussianRelease,
    DiscreteGaussianSum,
    Event,
    GaussianRelease,
    NonPrivateRelease,
    PoissonReplaced,
    PoissonSampled,
    Scheduled,
    SkellamRelease,
    replace_one,
)
from dp.accounting.gaussian import VARIANCE_MIN, Shifts, epsilon_of_shift, gaussian_shifts
from dp.accounting.rdp import epsilon_from_rdp, rdp_curve
from dp.accounting.statements import epsilon_of


def hermite(n: int, x: mpf) -> mpf:
    before, now = mpf(1), x
    for k in range(1, n):
        before, now = now, x * now - k * before
    return now


def coefficients(variance: int) -> dict[int, mpf]:
    """Of the Hermite polynomials: r4, -r6 and r4^2 / 2."""
    r4 = mpf(variance) / 24 + mpf(1) / 2880
    return {4: r4, 6: mpf(variance) / 720 - mpf(1) / 181440, 8: r4**2 / 2}


def density(variance: int, width: mpf, y: mpf) -> mpf:
    """The function of y with the transform exp(-width u^2 / 2) P(u): q, and e."""
    x = y / mpmath.sqrt(width)
    bracket = 1 + sum(
        c * hermite(n, x) / width ** (n // 2) for n, c in coefficients(variance).items()
    )
    return mpmath.npdf(x) / mpmath.sqrt(width) * bracket


def below(variance: int, width: mpf, y: mpf) -> mpf:
    """The integral of e up to y."""
    x = y / mpmath.sqrt(width)
    terms = (c * hermite(n - 1, x) / width ** (n // 2) for n, c in coefficients(variance).items())
    return mpmath.ncdf(x) - mpmath.npdf(x) * sum(terms)


def skellam(variance: float, size: int) -> list[mpf]:
    """Exact probabilities of 0 to ``size``, by the recurrence of Bessel functions."""
    start = size + size // 2 + 60
    terms = [mpf(0)] * (start + 2)
    terms[start] = mpf(10) ** -200
    for k in range(start, 0, -1):
        terms[k - 1] = terms[k + 1] + 2 * k / mpf(variance) * terms[k]
    total = terms[0] + 2 * sum(terms[1:])
    return [term / total for term in terms[: size + 1]]


def distance(variance: int, bound: Callable[[mpf], mpf]) -> mpf:
    """Statistical distance of Skellam noise from what ``bound`` is the distribution function of,
    rounded to integers, as far as anybody could see."""
    size = int(12 * math.sqrt(variance))
    exact = skellam(variance, size)
    cells = [bound(mpf(k) + mpf("0.5")) for k in range(-1, size + 1)]
    rounded = [b - a for a, b in pairwise(cells)]
    apart = [abs(p - cell) for p, cell in zip(exact, rounded, strict=True)]
    return (apart[0] + 2 * sum(apart[1:])) / 2


@pytest.fixture(autouse=True)
def _digits() -> None:
    mpmath.mp.dps = 40


@pytest.mark.parametrize("variance", [1000, 3000, 10_000])
def test_skellam_noise_is_within_the_distance_of_post_processed_gaussian_noise(
    variance: int,
) -> None:
    found = distance(variance, lambda y: below(variance, variance - mpf(1) / 12, y))
    stated = gaussian._skellam(1, 1, variance)
    assert stated is not None
    assert found <= stated.distance
    assert found * variance**3 == pytest.approx(0.0362, rel=2e-3)  # so the figure of the page

    # Rounded Gaussian noise of the same variance is not: what is added is what it takes.
    plain = distance(variance, lambda y: mpmath.ncdf(y / mpmath.sqrt(variance - mpf(1) / 12)))
    assert plain > 1e3 * stated.distance


@pytest.mark.parametrize("variance", [1000, 10_000, 10**7])
def test_what_is_added_to_the_gaussian_noise_is_a_random_number(variance: int) -> None:
    left = variance - mpf(1) / 12
    for taken, sound in ((1.5, True), (0.6, False)):
        width = taken * mpmath.sqrt(variance) - mpf(1) / 12
        points = [mpf(k) / 50 * mpmath.sqrt(width) for k in range(500)]
        assert (min(density(variance, width, y) for y in points) >= 0) is sound
    # Gaussian noise of the variance that is left and this number have the density e.
    width = 1.5 * mpmath.sqrt(variance) - mpf(1) / 12
    rest, reach = left - width, 12 * mpmath.sqrt(width)
    for at in (mpf(0), mpmath.sqrt(left), -3 * mpmath.sqrt(left)):
        both = mpmath.quad(
            lambda y, at=at: (
                density(variance, width, y) * mpmath.npdf(at - y, 0, mpmath.sqrt(rest))
            ),
            mpmath.linspace(-reach, reach, 9),
        )
        assert both == pytest.approx(density(variance, left, at), rel=1e-15)


def test_the_page_s_bound_is_below_the_distance_that_is_charged() -> None:
    def moment(n: int, a: mpf) -> mpf:
        return mpmath.gamma(n + mpf("0.5")) * a ** (-n - mpf("0.5"))

    mpmath.mp.dps = 150
    worst = mpf(0)
    for step in range(200):
        variance = mpf(VARIANCE_MIN) * mpf(2) ** step
        r4, less, c8 = (
            variance / 24 + mpf(1) / 2880,
            variance / 720 - mpf(1) / 181440,
            variance / 40320 + mpf(1) / 9_000_000,
        )
        v = variance - mpf(1) / 12
        near = (
            c8 * moment(4, v / 2)
            + r4 * (c8 + less) * moment(5, v / 2)
            + r4**3 * moment(6, v / 2 - r4) / 6
        )
        far = 2 * (mpmath.pi - 1) * mpmath.exp(-mpf("0.459") * variance)
        far += (1 + r4 + less + r4**2 / 2) * mpmath.exp(-v / 4) * moment(4, v / 4)
        reach = mpmath.sqrt(8 * variance * mpmath.log(variance))
        tail = mpmath.cosh(reach / variance) - 1
        tail = 2 * mpmath.exp(variance * tail - reach**2 / variance)
        assert far < mpf(10) ** -90 * variance ** -mpf("3.5")
        assert tail < mpf("2.3") / variance**4
        bound = (2 * reach + 1) * (near + far) / (2 * mpmath.pi) + tail
        worst = max(worst, bound * variance**3 / mpmath.sqrt(mpmath.log(variance)))
    assert 0.6 < worst < 0.67


def log_skellam(variance: float, size: int) -> NDArray[np.float64]:
    half = [float(mpmath.log(p)) for p in skellam(variance, size)]
    return np.array(half[:0:-1] + half)


def exact_delta(epsilon: float, moves: tuple[int, ...], variance: int) -> float:
    """Exact delta of one Skellam sum per shift (at most two), by enumeration."""
    size = int(9 * math.sqrt(variance))
    logs = log_skellam(variance, size + max(moves))
    middle = slice(max(moves), len(logs) - max(moves))
    kept = np.arange(len(logs))[middle]
    with_it, without = np.zeros(1), np.zeros(1)
    for move in moves:
        with_it = np.add.outer(with_it, logs[kept - move]).ravel()
        without = np.add.outer(without, logs[kept]).ravel()
    forth = np.maximum(0, np.exp(with_it) - np.exp(epsilon + without)).sum()
    back = np.maximum(0, np.exp(without) - np.exp(epsilon + with_it)).sum()
    return float(max(forth, back))


@pytest.mark.parametrize(
    ("moves", "variance"),
    [((70,), 4000), ((50, 50), 4000), ((70, 1), 4000), ((100,), 40_000)],
)
def test_no_sum_costs_more_than_is_said_and_little_less(
    moves: tuple[int, ...], variance: int
) -> None:
    delta = 1e-5
    event = SkellamRelease(sum(m * m for m in moves), sum(moves), variance)
    epsilon = epsilon_of(event, delta)
    assert exact_delta(epsilon, moves, variance) <= delta
    renyi = epsilon_of(event, delta, renyi=True)
    assert renyi == epsilon_from_rdp(rdp_curve(event), delta)
    assert epsilon < renyi / 1.02
    m = math.sqrt(sum(x * x for x in moves) / variance)
    assert epsilon_of_shift(m, delta) < epsilon < 1.06 * epsilon_of_shift(m, delta)


@pytest.mark.parametrize("variance", [1000, 4000])
def test_a_second_shift_that_follows_from_the_first_sum_changes_nothing(variance: int) -> None:
    """Two sums of one record: after a sum that betrays it, it moves the next by all; else by some.

    Released as events, the first costs its shift and the second the largest that it can be.
    """
    delta, first, most = 1e-5, 20, 30
    event = Composed(
        (
            (SkellamRelease(first**2, first, variance), 1),
            (SkellamRelease(most**2, most, variance), 1),
        )
    )
    epsilon = epsilon_of(event, delta)
    size = int(9 * math.sqrt(variance))
    logs = log_skellam(variance, size + most)
    kept = np.arange(most, len(logs) - most)
    for threshold in (-10, 10, 25):
        moves = np.where(kept - len(logs) // 2 > threshold, most, 7)
        second = np.stack([logs[kept - move] for move in moves])
        with_it = logs[kept - first][:, None] + second
        without = logs[kept][:, None] + logs[kept][None, :]
        forth = np.maximum(0, np.exp(with_it) - np.exp(epsilon + without)).sum()
        assert forth <= delta
    # Had the second shift been taken for the small one, the same game would exceed delta.
    less = epsilon_of_shift(math.sqrt((first**2 + 7**2) / variance), delta)
    with_it, without = np.exp(with_it), np.exp(less + without)
    assert np.maximum(0, with_it - without).sum() > delta


def test_what_each_event_is_as_gaussian_releases() -> None:
    small = SkellamRelease(16, 8, 4000)
    large = SkellamRelease(64, 16, 4000)
    one, two = gaussian_shifts(small), gaussian_shifts(large)
    assert one is not None
    assert two is not None
    s2 = 4000 - 1.5 * math.sqrt(4000)
    apart = math.sqrt(math.log(4000)) / 4000**3
    assert (one.squared, one.distance) == pytest.approx((16 / s2, 8 * apart))
    assert (two.squared, two.distance) == pytest.approx((64 / s2, 16 * apart))
    # Few units can move no more coordinates than their squares add up to.
    assert gaussian_shifts(SkellamRelease(4, 8, 4000)) == Shifts(
        pytest.approx(4 / s2), pytest.approx(4 * apart)
    )

    def both(count: int, other: int) -> Shifts:
        return Shifts(
            pytest.approx(count * one.squared + other * two.squared),
            pytest.approx(count * one.distance + other * two.distance),
        )

    parts: tuple[tuple[Event, int], ...] = ((small, 3), (large, 2))
    assert gaussian_shifts(Composed(parts)) == both(3, 2)
    assert gaussian_shifts(Scheduled(parts, 3)) == both(1, 2)
    assert gaussian_shifts(Scheduled(parts, 0)) == Shifts(0.0, 0.0)
    assert gaussian_shifts(PoissonSampled(0.3, small)) == one
    assert gaussian_shifts(PoissonReplaced(0.3, small)) == gaussian_shifts(replace_one(small))
    assert gaussian_shifts(GaussianRelease(2.0)) == Shifts(pytest.approx(0.25), 0.0)
    assert gaussian_shifts(Composed(((NonPrivateRelease(), 0), (small, 1)))) == both(1, 0)


@pytest.mark.parametrize(
    "event",
    [
        SkellamRelease(16, 8, VARIANCE_MIN - 1),
        SkellamRelease(16, 8, 2**600),
        NonPrivateRelease(),
        DiscreteGaussianRelease(1.0),
        DiscreteGaussianSum(4, 2, 100, 4, 10),
        Composed(((SkellamRelease(16, 8, 4000), 1), (NonPrivateRelease(), 1))),
    ],
    ids=lambda event: type(event).__name__,
)
def test_nothing_is_said_of_an_event_that_no_proof_covers(event: Event) -> None:
    assert gaussian_shifts(event) is None
    assert epsilon_of(event, 1e-5) == epsilon_of(event, 1e-5, renyi=True)


def test_the_distance_is_paid_from_delta() -> None:
    event = SkellamRelease(60**2, 60, 4000)
    shifts = gaussian_shifts(event)
    assert shifts is not None
    plain = epsilon_of_shift(math.sqrt(shifts.squared), 1e-5)
    paid = epsilon_of(event, 1e-5)
    assert paid > plain
    slack = (1 + math.exp(paid)) * shifts.distance
    assert paid >= epsilon_of_shift(math.sqrt(shifts.squared), 1e-5 - slack)
    # A delta that cannot pay leaves the Renyi bound.
    assert epsilon_of(event, 1e-9) == epsilon_of(event, 1e-9, renyi=True)
    # So does the distance of imperfect randomness, which is paid beside it.
    assert epsilon_of(event, 1e-5, -40.0) > paid


def test_a_sampled_batch_never_costs_more_than_all_of_it() -> None:
    event = SkellamRelease(10**8, 10**5, 2 * 10**8)
    whole = epsilon_of(event, 1e-5)
    sampled = [epsilon_of(PoissonSampled(rate, event), 1e-5) for rate in (0.2, 0.9, 0.999)]
    assert sampled == sorted(sampled)
    assert sampled[0] < 0.7 * whole
    assert sampled[2] <= whole < epsilon_of(PoissonSampled(0.999, event), 1e-5, renyi=True)


def test_the_tail_of_a_gaussian_is_that_of_the_reference() -> None:
    for tenth in range(-100, 500):
        x = tenth / 10
        exact = mpmath.log(mpmath.erfc(mpf(x) / mpmath.sqrt(2)) / 2)
        assert abs(gaussian._log_tail(x) - exact) <= gaussian._LOG_ERROR / 10 * (1 + abs(exact))
