"""Correlated noise made from devices' own shares, with drop-outs: its cost and its gain.

No task has it (docs/adr/0026-correlated-noise-of-silos.md, which has the mechanism and the proof).
``python -m benchmarks.correlated_silos`` prints the tables of that page.

Device i keeps the noise m that it sent in the last cohorts. In cohort t it sends its contribution
and m_t = z_t - sum over j of c_j m_(t - j), with a fresh z_t of variance 1, c_0 = 1, 0 <= c_j, and
m_(t - j) = 0 where it sent none or forgot it. Here everything is a Gaussian of one coordinate, so
that the cost of a contribution follows exactly from the covariance of the sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.correlated import prefix_coefficients
from dp.planning.gaussian import exact_epsilon

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DEVICES = 5
_DELTA = 1e-5
_MULTIPLIER = 1.4
_DRAWS = 40
_CASES = {  # away, aborted, kept of the iterate before
    "everyone is in each": (0.0, 0.0, 1.0),
    "one in 20 is away": (0.05, 0.0, 1.0),
    "one in 10 is away": (0.1, 0.0, 1.0),
    "one in 5 is away": (0.2, 0.0, 1.0),
    "half are away": (0.5, 0.0, 1.0),
    "one cohort in 10 is aborted": (0.0, 0.1, 1.0),
    "everyone; an iterate keeps 0.9 of the one before": (0.0, 0.0, 0.9),
    "everyone; it keeps 0.5": (0.0, 0.0, 0.5),
    "everyone; it keeps nothing": (0.0, 0.0, 0.0),
}


def band_of(band: int) -> tuple[float, ...]:
    """c_0 = 1, c_1, ...: the square root of prefix sums, cut to ``band``."""
    whole = prefix_coefficients(band)
    return tuple(c / whole[0] for c in whole)


def squared_norm(band: Sequence[float]) -> float:
    """||c||^2: how much less noise counts than a share's fresh part has."""
    return sum(c * c for c in band)


def own_noise(
    band: Sequence[float],
    numbers: Sequence[int],
    sent: Sequence[bool],
    kept: Sequence[bool],
    share: Sequence[float] | None = None,
) -> NDArray[np.float64]:
    """The matrix that makes m of z / sqrt(share); rows and columns are cohorts.

    Args:
        band: c.
        numbers: of the cohorts, by which a device finds what it sent j cohorts ago; rising.
        sent: cohorts for which the device made noise.
        kept: cohorts whose noise it remembers.
        share: variance of z in each cohort; None: 1.
    """
    made = np.zeros((len(numbers), len(numbers)))
    for t, number in enumerate(numbers):
        if sent[t]:
            made[t, t] = 1.0 if share is None else math.sqrt(share[t])
            for s in range(t):
                if kept[s] and number - numbers[s] < len(band):
                    made[t] -= band[number - numbers[s]] * made[s]
    return made


def cost(noises: Sequence[NDArray[np.float64]], unit: Sequence[float]) -> float:
    """Squared distance that ``unit`` moves the sums, in their own noise: mu^2.

    Args:
        noises: of each device, zero where its noise is not in the sum.
        unit: what one example adds to each sum.
    """
    seen = [t for t in range(len(unit)) if any(noise[t].any() for noise in noises)]
    covariance = sum(noise[seen] @ noise[seen].T for noise in noises)
    moved = np.asarray(unit, float)[seen]
    return float(moved @ np.linalg.solve(covariance, moved))


def spread(noises: Sequence[NDArray[np.float64]], kept: float) -> float:
    """Mean squared noise of the iterates, each keeping ``kept`` of the one before.

    1: sums over all rounds so far, as in the plane directions of a loss.
    """
    rounds = len(noises[0])
    weights = np.array(
        [[kept ** (t - s) if s <= t else 0.0 for s in range(rounds)] for t in range(rounds)]
    )
    return float(sum(((weights @ noise) ** 2).sum() for noise in noises)) / rounds


def gain(
    length: int, rounds: int, away: float = 0.0, aborted: float = 0.0, kept: float = 1.0
) -> float:
    """Noise of the iterates by independent shares over that by correlated ones, root mean squares.

    At the same cost to an example, over the same cohorts. Devices stay away from a cohort, and
    cohorts are aborted, with these probabilities.
    """
    band, rng = band_of(length), np.random.default_rng(1)
    numbers, plain, correlated = range(rounds), 0.0, 0.0
    for _ in range(_DRAWS if away or aborted else 1):
        whole = rng.random(rounds) >= aborted
        there = [whole & (rng.random(rounds) >= away) for _ in range(_DEVICES)]
        noises = [own_noise(band, numbers, list(sent), list(sent)) for sent in there]
        correlated += spread(noises, kept) * squared_norm(band)
        plain += spread([np.diag(sent.astype(float)) for sent in there], kept)
    return math.sqrt(plain / correlated)


def worst_over_bound(tries: int) -> float:
    """The largest cost over the bound of the page, over random cohorts, forgetting and signs."""
    rng = np.random.default_rng(2)
    return max(by_the_rule(rng) for _ in range(tries))


def by_the_rule(rng: np.random.Generator) -> float:
    """Cost over bound of random cohorts: some aborted, devices away, dropped and forgetful."""
    period, charges = int(rng.integers(2, 5)), int(rng.integers(6, 13))
    released = rng.random(charges) < 0.7
    sent = rng.random((_DEVICES, charges)) < 0.8
    kept = sent & (rng.random((_DEVICES, charges)) < 0.9)
    arrived = sent & released & (rng.random((_DEVICES, charges)) < 0.9)
    noises = [
        own_noise(band_of(period), range(charges), list(sent[i]), list(kept[i]))
        * arrived[i][:, None]
        for i in range(_DEVICES)
    ]
    unit = np.zeros(charges)
    first = int(rng.integers(0, period))
    unit[first::period] = rng.choice((-1.0, 1.0), len(unit[first::period]))
    return _over_bound(noises, unit, arrived.sum(axis=0), period)


def everyone_in_each() -> float:
    """Cost over bound: it is attained."""
    everyone = [True] * 8
    noises = [own_noise(band_of(4), range(8), everyone, everyone)] * _DEVICES
    unit = np.array([1.0, 0, 0, 0, 1.0, 0, 0, 0])
    return _over_bound(noises, unit, np.full(8, _DEVICES), 4)


def shares_by_size() -> float:
    """Cost over bound: n devices of a cohort add variance 1 / n each, so 1 in every cohort."""
    there = [[t == "1" for t in device] for device in ("01011111", "11110111", "00111111")]
    share = list(1 / np.sum(there, axis=0))
    noises = [own_noise(band_of(4), range(8), sent, sent, share) for sent in there]
    unit = np.array([1.0, 0, 0, 0, 1.0, 0, 0, 0])
    return _over_bound(noises, unit, np.ones(8, np.int64), 4)


def _over_bound(
    noises: Sequence[NDArray[np.float64]],
    unit: NDArray[np.float64],
    counted: NDArray[np.int64],
    period: int,
) -> float:
    """Cost over ||c||^2 times the sum of 1 / variance, in the sums that anybody's noise is in."""
    unit = np.where(counted > 0, unit, 0.0)
    bound = squared_norm(band_of(period)) * sum(1 / counted[t] for t in np.flatnonzero(unit))
    return cost(noises, list(unit)) / bound if bound else 0.0


def numbered_by_releases() -> float:
    """Cost over bound: three of four charges are aborted, and noise goes on by releases."""
    everyone = [True] * 8
    noises = [own_noise(band_of(4), range(8), everyone, everyone)] * _DEVICES
    unit = np.array([1.0, 1.0, *[0.0] * 6])
    return _over_bound(noises, unit, np.full(8, _DEVICES), 4)


def numbered_by_device() -> float:
    """Cost over bound: devices are in every fourth cohort, and count their own alone."""
    sent = [t % 4 == 0 for t in range(16)]
    noises = [own_noise(band_of(4), list(np.cumsum(sent)), sent, sent)] * _DEVICES
    unit = np.zeros(16)
    unit[[0, 4]] = 1.0
    return _over_bound(noises, unit, np.where(sent, _DEVICES, 0), 4)


def _epsilon(factor: float) -> float:
    """Of two sums whose cost is ``factor`` times what is claimed."""
    return exact_epsilon(_MULTIPLIER / math.sqrt(factor), 2, _DELTA)


def main() -> None:
    """The tables of ADR 26."""
    print("| variant | cost over bound | epsilon |\n|---|---|---|")
    breaches = {
        "by the rule, everyone in each cohort": everyone_in_each(),
        "cohorts numbered by releases": numbered_by_releases(),
        "cohorts numbered by each device": numbered_by_device(),
        "shares that follow the size of the cohort": shares_by_size(),
        "1 of 5 tells its noise later": 5 / 4,
        "2 of 5 tell their noise later": 5 / 3,
        "3 of 5 tell their noise later": 5 / 2,
    }
    for name, factor in breaches.items():
        print(f"| {name} | {factor:.2f} | {_epsilon(factor):.2f} |")
    sizes = ((3, 4), (4, 8), (4, 16), (8, 32), (16, 64))
    print("| band, releases |" + "".join(f" {length}, {rounds} |" for length, rounds in sizes))
    print("|---|" + "---|" * len(sizes))
    for name, (away, aborted, kept) in _CASES.items():
        found = (gain(*size, away, aborted, kept) for size in sizes)
        print(f"| {name} |" + "".join(f" {value:.2f} |" for value in found))


if __name__ == "__main__":
    main()
