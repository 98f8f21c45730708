"""Correlated noise (matrix mechanism): the sensitivity of a banded Toeplitz matrix, exactly.

No task has it (docs/adr/0005-correlated-noise.md). ``python -m benchmarks.correlated`` prints what
it would gain.

The rounds of a training are the rows of G. Released is C G + Z, with a public lower-triangular
matrix C and independent noise Z; the server makes C^-1 (C G + Z) = G + C^-1 Z of it, whose noise
partly cancels in the sum over rounds. A unit takes part in at most k rounds, any two of them at
least b apart, and its contribution to each is clipped. If it leaves, C G moves by the sum over its
rounds t of (column t of C) times (its contribution). With X = C^T C and contributions of norm 1,

    S^2 = max over admissible sets of rounds of  sum over s, t in the set of |X[s, t]|

bounds the squared norm of that (Choquette-Choo, McMahan, Rush, Thakurta, "Multi-Epoch Matrix
Factorization Mechanisms", ICML 2023); it is attained if X has no negative entry. Here C is
Toeplitz, its first column the integers ``coefficients``, then zeros:

* at most b coefficients: columns of one unit do not overlap, X is diagonal there, and S^2 is the
  sum of their squared norms, at most k ||c||^2 (Choquette-Choo and others, "(Amplified) Banded
  Matrix Factorization", NeurIPS 2023). Columns lose entries towards the last round, so the earliest
  rounds are the worst;
* otherwise, coefficients that are not negative and never rise: the rounds 0, b, 2b, ... are the
  worst (so also Kalinin, Lampert, "Banded Square Root Matrix Factorization", NeurIPS 2024). For
  round i of a set, t_i >= i b and t_j - t_i >= (j - i) b, and for s <= t
  X[s, t] = sum over r < rounds - t of c[r] c[r + t - s]: moving to those rounds lengthens the sum
  and raises every term;
* otherwise the maximum over all sets, one by one, if they are few; else nobody knows: an error.

Everything is an integer, so the bound is exact. That earlier results may choose later contributions
changes nothing: row t moves by a vector that is fixed once the rows before are known, so its Renyi
divergence is bounded through that vector's norms, whose sums over all rows obey the above bounds
for every choice (Feldman, Zrnic, "Individual Privacy Accounting via a Renyi Filter", NeurIPS 2021,
Theorem 3.1). This holds for noise whose divergence is bounded by a sum of terms in L2^2 and L1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from dp.accounting.events import (
    DiscreteGaussianRelease,
    DiscreteGaussianSum,
    Event,
    GaussianRelease,
    SkellamRelease,
)
from dp.errors import AccountingError

BAND_MAX = 16  # 4^15 still leaves the integer grid room
ROUNDS_MAX = 1 << 20
_COEFFICIENT_MAX = 1 << 40
_SETS_MAX = 200_000
_OUTWARD = 1.0 + 1e-12  # more than the rounding of a root and a quotient
_ROUNDS = 64
_TAKES_PART = {
    "in every round": (_ROUNDS, 1),
    "in 8 rounds, 8 apart": (8, 8),
    "in 4 rounds, 16 apart": (4, 16),
}


def squared_sensitivity(
    coefficients: Sequence[int], rounds: int, participations: int, separation: int
) -> int:
    """S^2 for contributions of norm at most 1 (module docstring).

    Args:
        coefficients: first column of C, up to its last entry that is not zero.
        rounds: rows.
        participations: k, most rounds that one unit takes part in.
        separation: b, least distance of two of them (1: any rounds).

    Raises:
        AccountingError: ``parameter-out-of-range``; ``sensitivity-unknown`` where nobody can bound
            it in reasonable time.
    """
    worst = _worst_rounds(coefficients, rounds, participations, separation)
    if len(coefficients) <= separation or _is_falling(coefficients):
        moved = [0] * rounds
        for t in worst:
            for row, c in enumerate(coefficients[: rounds - t], t):
                moved[row] += c
        return sum(value * value for value in moved)
    if not _few_sets(rounds, participations, separation):
        raise AccountingError(
            "sensitivity-unknown",
            "Nobody can bound the sensitivity of these coefficients for so many rounds.",
            expected=f"at most {_SETS_MAX} sets of rounds, coefficients that fall, or "
            f"at most {separation} coefficients",
            found=list(coefficients[:8]),
        )
    return max(
        sum(abs(_product(coefficients, rounds, s, t)) for s in chosen for t in chosen)
        for chosen in _every_set(rounds, participations, separation, 0)
    )


def l1_sensitivity(
    coefficients: Sequence[int], rounds: int, participations: int, separation: int
) -> int:
    """Bound on the L1 norm by which C G moves, for contributions of L1 norm at most 1."""
    worst = _worst_rounds(coefficients, rounds, participations, separation)
    return sum(sum(abs(c) for c in coefficients[: rounds - t]) for t in worst)


def prefix_coefficients(band: int) -> tuple[int, ...]:
    """The square root of the matrix of prefix sums, cut to a band: 4^(band - 1) binom(2j, j) / 4^j.

    The best Toeplitz matrix for sums over rounds up to lower orders (Henzinger, Upadhyay, Upadhyay,
    SODA 2023); as integers, exactly. Noise is then relative to the first of them.

    Raises:
        AccountingError: ``parameter-out-of-range`` unless 1 <= band <= 16.
    """
    if not 1 <= band <= BAND_MAX:
        raise AccountingError(
            "parameter-out-of-range",
            "The band is out of range.",
            expected=f"1 to {BAND_MAX}",
            found=band,
        )
    return tuple(4 ** (band - 1 - j) * math.comb(2 * j, j) for j in range(band))


def noise_ratio(
    coefficients: Sequence[int], rounds: int, participations: int, separation: int
) -> float:
    """Root mean squared noise in the sums over rounds, over that of independent noise.

    Both at the same cost to the same unit. Below 1 correlation helps.

    Raises:
        AccountingError: as :func:`squared_sensitivity`.
    """
    squared = squared_sensitivity(coefficients, rounds, participations, separation)
    inverse = np.zeros(rounds)  # first column of C^-1
    inverse[0] = 1 / coefficients[0]
    for t in range(1, rounds):
        reach = min(t, len(coefficients) - 1)
        past = inverse[t - reach : t][::-1]
        inverse[t] = -float(past @ np.array(coefficients[1 : reach + 1], float)) / coefficients[0]
    sums = inverse.cumsum()  # first column of A C^-1, A the matrix of prefix sums
    correlated = float((np.arange(rounds, 0, -1) * sums**2).sum()) * squared
    taken = len(_worst_rounds(coefficients, rounds, participations, separation))
    return math.sqrt(correlated / (rounds * (rounds + 1) / 2 * taken))


def whole_release(
    coefficients: Sequence[int], rounds: int, participations: int, separation: int, row: Event
) -> Event:
    """All rows as one release: the row's noise, the sensitivity of the whole matrix.

    ``row``: one row with a contribution of coefficient 1: its sensitivity, its noise.

    Raises:
        AccountingError: as :func:`squared_sensitivity`; ``event-unknown`` for sampled rows.
    """
    shape = (coefficients, rounds, participations, separation)
    squared, absolute = squared_sensitivity(*shape), l1_sensitivity(*shape)
    match row:
        case SkellamRelease(l2, l1, variance, adjacency):
            return SkellamRelease(l2 * squared, l1 * absolute, variance, adjacency)
        case DiscreteGaussianSum(l2, l1, share, shares, length, adjacency):
            return DiscreteGaussianSum(
                l2 * squared, l1 * absolute, share, shares, length * rounds, adjacency
            )
        case DiscreteGaussianRelease(z, adjacency):
            return DiscreteGaussianRelease(z / (math.sqrt(squared) * _OUTWARD), adjacency)
        case GaussianRelease(z, adjacency):
            return GaussianRelease(z / (math.sqrt(squared) * _OUTWARD), adjacency)
        case _:
            raise AccountingError(
                "event-unknown",
                "No accountant can vouch for such rows under correlated noise.",
                found=type(row).__name__,
            )


def _worst_rounds(
    coefficients: Sequence[int], rounds: int, participations: int, separation: int
) -> range:
    sized = 1 <= rounds <= ROUNDS_MAX and participations >= 1 and separation >= 1
    banded = 1 <= len(coefficients) <= rounds and coefficients[0] != 0
    if not (sized and banded and all(abs(c) <= _COEFFICIENT_MAX for c in coefficients)):
        raise AccountingError(
            "parameter-out-of-range",
            "Correlated noise needs rounds, participations, a separation, and at most as many "
            "coefficients as rounds, the first of them not zero.",
            found=(list(coefficients[:8]), min(rounds, ROUNDS_MAX + 1), participations > 0),
        )
    count = min(participations, 1 + (rounds - 1) // separation)
    return range(0, count * separation, separation)


def _is_falling(coefficients: Sequence[int]) -> bool:
    below = (*coefficients[1:], 0)  # falling to 0, so never negative
    return all(c >= after for c, after in zip(coefficients, below, strict=True))


def _product(coefficients: Sequence[int], rounds: int, s: int, t: int) -> int:
    """X[s, t]."""
    early, late = min(s, t), max(s, t)
    shift, room = late - early, rounds - late
    return sum(
        coefficients[r] * coefficients[r + shift]
        for r in range(min(room, len(coefficients) - shift))
    )


def _few_sets(rounds: int, participations: int, separation: int) -> bool:
    """Whether at most ``_SETS_MAX`` sets of rounds are admissible."""
    most, total = min(participations, 1 + (rounds - 1) // separation), 0
    for k in range(1, most + 1):
        total += math.comb(rounds - (k - 1) * (separation - 1), k)
        if total > _SETS_MAX:
            return False
    return True


def _every_set(
    rounds: int, participations: int, separation: int, first: int
) -> Iterator[tuple[int, ...]]:
    yield ()
    if participations:
        for t in range(first, rounds):
            for rest in _every_set(rounds, participations - 1, separation, t + separation):
                yield (t, *rest)


def main() -> None:
    """Noise in the sums over rounds, over that of independent noise at the same cost."""
    bands = (2, 4, 8, 16)
    print(f"| over {_ROUNDS} rounds a unit takes part | {' | '.join(f'band {b}' for b in bands)} |")
    print("|" + "---|" * (1 + len(bands)))
    for how, limits in _TAKES_PART.items():
        ratios = [noise_ratio(prefix_coefficients(band), _ROUNDS, *limits) for band in bands]
        print(f"| {how} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")


if __name__ == "__main__":
    main()
