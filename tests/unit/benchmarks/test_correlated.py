"""Correlated noise: its sensitivity against brute force, its cost, and what nobody can account."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import correlated
from benchmarks.correlated import (
    BAND_MAX,
    l1_sensitivity,
    noise_ratio,
    prefix_coefficients,
    squared_sensitivity,
    whole_release,
)
from dp.accounting.events import (
    Composed,
    DiscreteGaussianRelease,
    DiscreteGaussianSum,
    Event,
    GaussianRelease,
    PoissonSampled,
    SkellamRelease,
    adjacency_of,
    replace_one,
)
from dp.accounting.rdp import rdp_curve
from dp.accounting.statements import epsilon_of
from dp.errors import AccountingError
from dp.planning.gaussian import exact_epsilon
from tests.kits.said import Case, refused


def matrix(coefficients: tuple[int, ...], rounds: int) -> np.ndarray:
    c = np.zeros((rounds, rounds), dtype=np.int64)
    for t in range(rounds):
        part = coefficients[: rounds - t]
        c[t : t + len(part), t] = part
    return c


def admissible(rounds: int, participations: int, separation: int) -> list[tuple[int, ...]]:
    return [
        chosen
        for size in range(1, participations + 1)
        for chosen in itertools.combinations(range(rounds), size)
        if all(b - a >= separation for a, b in itertools.pairwise(chosen))
    ]


def brute_force(coefficients: tuple[int, ...], rounds: int, k: int, b: int) -> tuple[int, int]:
    """Largest squared norm over all sets of rounds and contributions of +-1, and the L1 norm."""
    c = matrix(coefficients, rounds)
    squared = absolute = 0
    for chosen in admissible(rounds, k, b):
        for signs in itertools.product((-1, 1), repeat=len(chosen)):
            moved = c[:, chosen] @ np.array(signs)
            squared = max(squared, int((moved**2).sum()))
            absolute = max(absolute, int(np.abs(moved).sum()))
    return squared, absolute


falling = st.lists(st.integers(0, 9), min_size=1, max_size=5).map(
    lambda c: tuple(sorted((1 + c[0], *c[1:]), reverse=True))
)
signed = st.lists(st.integers(-6, 6), min_size=1, max_size=4).map(lambda c: (c[0] or 1, *c[1:]))
sizes = st.tuples(st.integers(5, 8), st.integers(1, 4), st.integers(1, 5))


@given(falling, sizes)
@settings(max_examples=60, deadline=None)
def test_falling_coefficients_are_exact(
    coefficients: tuple[int, ...], size: tuple[int, int, int]
) -> None:
    rounds, k, b = size
    squared, absolute = brute_force(coefficients, rounds, k, b)
    assert squared_sensitivity(coefficients, rounds, k, b) == squared
    assert l1_sensitivity(coefficients, rounds, k, b) == absolute


@given(signed, sizes)
@settings(max_examples=60, deadline=None)
def test_any_coefficients_are_covered_and_without_overlap_exact(
    coefficients: tuple[int, ...], size: tuple[int, int, int]
) -> None:
    rounds, k, b = size
    squared, absolute = brute_force(coefficients, rounds, k, b)
    bound = squared_sensitivity(coefficients, rounds, k, b)
    assert bound >= squared
    assert l1_sensitivity(coefficients, rounds, k, b) >= absolute
    if len(coefficients) <= b:
        assert bound == squared


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    st.integers(4, 7),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_rising_coefficients_are_exact_where_all_sets_are_tried(
    coefficients: tuple[int, ...], rounds: int, k: int
) -> None:
    """Without negative entries nothing cancels, and late columns are cut."""
    squared, _ = brute_force(coefficients, rounds, k, 1)
    assert squared_sensitivity(coefficients, rounds, k, 1) == squared


@pytest.mark.parametrize("noisy", [True, False])
def test_all_rows_are_one_release_of_the_whole_sensitivity(noisy: bool) -> None:
    """Coarse noise, for which L1 and the number of coordinates count too."""
    shape = ((3, 2, 1), 6, 2, 3)  # columns (3, 2, 1) twice: 14 + 14, and 6 + 6
    if noisy:
        row: Event = SkellamRelease(9, 5, 12)
        whole: Event = SkellamRelease(9 * 28, 5 * 12, 12)
    else:
        row = DiscreteGaussianSum(9, 50, 1, 3, 4)
        whole = DiscreteGaussianSum(9 * 28, 50 * 12, 1, 3, 4 * 6)
    assert rdp_curve(whole_release(*shape, row)) == rdp_curve(whole)


def test_vectors_in_any_direction_are_covered() -> None:
    """Contributions are vectors, not signs: the bound holds for those in other directions too."""
    rng = np.random.default_rng(3)
    coefficients, rounds, k, b = (8, 4, 3), 9, 3, 2
    c, bound = matrix(coefficients, rounds), squared_sensitivity((8, 4, 3), 9, 3, 2)
    sets = admissible(rounds, k, b)
    for chosen in (sets[int(i)] for i in rng.integers(0, len(sets), 300)):
        unit = rng.normal(size=(len(chosen), 5))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        assert np.linalg.norm(c[:, chosen] @ unit) ** 2 <= bound * (1 + 1e-12)


@pytest.mark.parametrize(("k", "b", "band"), [(1, 8, 4), (3, 4, 4), (4, 6, 5)])
def test_banded_sensitivity_is_root_k_times_the_columns_norm(k: int, b: int, band: int) -> None:
    coefficients = prefix_coefficients(band)
    norm = sum(c * c for c in coefficients)
    assert squared_sensitivity(coefficients, 64, k, b) == k * norm
    # At the end columns are cut, so fewer rounds than k fit as a whole.
    if k > 1:
        assert squared_sensitivity(coefficients, (k - 1) * b + 1, k, b) < k * norm
    assert squared_sensitivity(coefficients, 64, 10**6, b) == squared_sensitivity(
        coefficients, 64, 1 + 63 // b, b
    )


def test_prefix_coefficients_are_the_square_root_of_prefix_sums() -> None:
    band = 12
    coefficients = prefix_coefficients(band)
    assert coefficients[:3] == (4**11, 4**11 // 2, 4**11 * 3 // 8)
    square = np.convolve(
        np.array(coefficients, float) / coefficients[0],
        np.array(coefficients, float) / coefficients[0],
    )[:band]
    np.testing.assert_allclose(square, 1.0, rtol=1e-12)
    for wrong in (0, -1, BAND_MAX + 1):
        with pytest.raises(AccountingError):
            prefix_coefficients(wrong)


@pytest.mark.parametrize("row", [SkellamRelease(9, 3, 50), DiscreteGaussianSum(9, 3, 2, 4, 7)])
@pytest.mark.parametrize(
    ("taken", "apart", "squared", "absolute"), [(2, 1, 26, 8), (2, 2, 20, 8), (4, 1, 57, 15)]
)
def test_rows_cost_what_the_whole_matrix_moves(
    row: Event, taken: int, apart: int, squared: int, absolute: int
) -> None:
    """C of 4 rounds and first column (3, 1), a unit in rounds 0 and 1: columns (3, 1, 0, 0) and
    (0, 3, 1, 0), which add up to (3, 4, 1, 0): 26. In rounds 0 and 2: 10 + 10 = 20. All of the
    four columns: the sum is (3, 4, 4, 4)."""
    match row:
        case SkellamRelease(l2, l1, variance):
            whole: Event = SkellamRelease(l2 * squared, l1 * absolute, variance)
        case DiscreteGaussianSum(l2, l1, share, shares, length):
            whole = DiscreteGaussianSum(l2 * squared, l1 * absolute, share, shares, 4 * length)
    assert whole_release((3, 1), 4, taken, apart, row) == whole


@pytest.mark.parametrize("kind", [GaussianRelease, DiscreteGaussianRelease])
def test_gaussian_rows_have_less_noise_for_the_whole(kind: type) -> None:
    whole = whole_release((3, 1), 4, 2, 1, kind(8.0))
    assert isinstance(whole, kind)
    assert whole.noise_multiplier == pytest.approx(8 / math.sqrt(26), rel=1e-11)
    assert whole.noise_multiplier < 8 / math.sqrt(26)


def test_without_correlation_it_is_plain_composition() -> None:
    row = SkellamRelease(1 << 20, 1 << 15, 1 << 24)
    whole = whole_release((1,), 12, 5, 1, row)
    plain = Composed(((row, 5),))
    assert epsilon_of(whole, 1e-6) == pytest.approx(epsilon_of(plain, 1e-6), rel=1e-9)
    assert noise_ratio((1,), 12, 5, 1) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "row",
    [
        SkellamRelease(100, 60, 10_000),
        DiscreteGaussianSum(100, 60, 1_000, 10, 8),
        DiscreteGaussianRelease(10.0),
        GaussianRelease(10.0),
    ],
)
def test_every_kind_of_row_costs_about_what_a_gaussian_does(row: Event) -> None:
    shape = ((2, 1), 10, 3, 4)  # S^2 = 3 * 5
    found = epsilon_of(whole_release(*shape, row), 1e-6, renyi=True)
    assert found >= exact_epsilon(10.0 / math.sqrt(15), 1, 1e-6)
    gaussian = epsilon_of(GaussianRelease(10.0 / math.sqrt(15)), 1e-6, renyi=True)
    assert found == pytest.approx(gaussian, rel=0.02)


def test_replacing_counts_twice_here_too() -> None:
    event = whole_release((2, 1), 10, 3, 4, SkellamRelease(100, 60, 10_000))
    replaced = replace_one(event)
    row = replace_one(SkellamRelease(100, 60, 10_000))
    assert replaced == whole_release((2, 1), 10, 3, 4, row)
    assert (adjacency_of(event), adjacency_of(replaced)) == ("add-or-remove", "replace-one")
    assert epsilon_of(replaced, 1e-6) > 1.9 * epsilon_of(event, 1e-6)


@pytest.mark.parametrize(
    ("shape", "row", "reason"),
    [
        (((1,), 4, 1, 1), PoissonSampled(0.1, GaussianRelease(1.0)), "event-unknown"),
        (((1,), 4, 1, 1), Composed(()), "event-unknown"),
        (((1, 2, -1), 64, 20, 1), GaussianRelease(1.0), "sensitivity-unknown"),
        (((), 4, 1, 1), GaussianRelease(1.0), "parameter-out-of-range"),
        (((0, 1), 4, 1, 1), GaussianRelease(1.0), "parameter-out-of-range"),
        (((1, 1), 1, 1, 1), GaussianRelease(1.0), "parameter-out-of-range"),
        (((1,), 0, 1, 1), GaussianRelease(1.0), "parameter-out-of-range"),
        (((1,), 4, 0, 1), GaussianRelease(1.0), "parameter-out-of-range"),
        (((1,), 4, 1, 0), GaussianRelease(1.0), "parameter-out-of-range"),
        (((10**40,), 4, 1, 1), GaussianRelease(1.0), "parameter-out-of-range"),
        (((1,), 10**9, 1, 1), GaussianRelease(1.0), "parameter-out-of-range"),
    ],
)
def test_what_nobody_can_account_fails_closed(
    shape: tuple[tuple[int, ...], int, int, int], row: Event, reason: str
) -> None:
    with pytest.raises(AccountingError) as caught:
        whole_release(*shape, row)
    assert caught.value.reason == reason


def simulated_ratio(coefficients: tuple[int, ...], rounds: int, k: int, b: int) -> float:
    """The same by matrices: noise of A C^-1 times S, against independent noise times sqrt(k)."""
    c = matrix(coefficients, rounds).astype(float)
    sums = np.tri(rounds)
    correlated = np.linalg.norm(sums @ np.linalg.inv(c)) * math.sqrt(
        squared_sensitivity(coefficients, rounds, k, b)
    )
    return float(correlated / (np.linalg.norm(sums) * math.sqrt(min(k, 1 + (rounds - 1) // b))))


@pytest.mark.parametrize(
    ("band", "rounds", "k", "b"), [(1, 8, 2, 3), (4, 16, 4, 4), (4, 12, 12, 1), (8, 9, 1, 9)]
)
def test_the_noise_of_sums_is_that_of_the_matrices(band: int, rounds: int, k: int, b: int) -> None:
    coefficients = prefix_coefficients(band)
    assert noise_ratio(coefficients, rounds, k, b) == pytest.approx(
        simulated_ratio(coefficients, rounds, k, b), rel=1e-9
    )


def test_correlation_helps_rare_participants_and_hurts_constant_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command prints the table of ADR 5."""
    correlated.main()
    printed = capsys.readouterr().out.splitlines()[2:]
    decision = Path(__file__).parents[3] / "docs" / "adr" / "0005-correlated-noise.md"
    table = [line for line in decision.read_text().splitlines() if line.startswith("| in ")]
    assert len(table) == 3
    assert printed == table


@pytest.mark.parametrize(
    ("rounds", "k", "b"),
    [(6, 2, 2), (7, 3, 1), (8, 9, 3), (9, 2, 4), (5, 1, 1), (5, 5, 5), (6, 9, 5)],
)
def test_admissible_sets_are_counted(
    rounds: int, k: int, b: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(set(admissible(rounds, k, b)) - {()})
    monkeypatch.setattr(correlated, "_SETS_MAX", count)
    assert correlated._few_sets(rounds, k, b)
    monkeypatch.setattr(correlated, "_SETS_MAX", count - 1)
    assert not correlated._few_sets(rounds, k, b)


def test_coefficients_and_rounds_have_their_limits() -> None:
    assert squared_sensitivity((1 << 40,), 1, 1, 1) == 1 << 80
    assert l1_sensitivity((1 << 40, -3), 5, 2, 4) == (1 << 41) + 3
    assert squared_sensitivity((1,), 1 << 20, 1, 1) == 1
    for shape in (
        (((1 << 40) + 1,), 1, 1, 1),
        ((1,), (1 << 20) + 1, 1, 1),
        ((1,), 0, 1, 1),
        ((1,), 1, 0, 1),
        ((1,), 1, 1, 0),
        ((0, 1), 2, 1, 1),
        ((), 2, 1, 1),
        ((1, 1, 1), 2, 1, 1),
    ):
        with pytest.raises(AccountingError, match="parameter-out-of-range"):
            squared_sensitivity(*shape)


def test_signed_coefficients_are_covered_by_the_sum_of_absolute_products() -> None:
    """(2, -1) in 4 rounds, all pairs of neighbours: X has 5 on its diagonal (4 in the last round)
    and -2 beside it; a unit in all four rounds moves 3 * 5 + 4 + 2 * 3 * 2."""
    assert squared_sensitivity((2, -1), 4, 4, 1) == 31
    assert squared_sensitivity((2, -1), 4, 2, 1) == 14
    assert squared_sensitivity((2, -1), 4, 1, 1) == 5
    assert squared_sensitivity((2, -1), 4, 2, 2) == 10
    assert l1_sensitivity((2, -1), 4, 4, 1) == 11


def test_as_many_coefficients_as_rounds_between_do_not_overlap() -> None:
    """Whatever they are, and however many sets of rounds there are."""
    assert squared_sensitivity((1, 2), 1000, 100, 2) == 500
    assert squared_sensitivity((1, 2, 3), 1000, 1000, 3) == 333 * 14 + 1


RELEASE = SkellamRelease(100, 10, 900)
REFUSED = {
    "rows that are sampled": Case(
        lambda: correlated.whole_release((1,), 4, 1, 1, PoissonSampled(0.5, RELEASE)),
        "event-unknown",
        None,
        "PoissonSampled",
    ),
    "a band of none": Case(
        lambda: correlated.prefix_coefficients(0), "parameter-out-of-range", "1 to 16", 0
    ),
    "a band of 17": Case(
        lambda: correlated.prefix_coefficients(17), "parameter-out-of-range", "1 to 16", 17
    ),
    "more coefficients than rounds": Case(
        lambda: correlated.squared_sensitivity((1,) * 9, 8, 1, 1),
        "parameter-out-of-range",
        None,
        ([1] * 8, 8, True),
    ),
    "rounds without end": Case(
        lambda: correlated.l1_sensitivity((1,), 1 << 30, 0, 1),
        "parameter-out-of-range",
        None,
        ([1], 2**20 + 1, False),
    ),
    "coefficients that rise": Case(
        lambda: correlated.squared_sensitivity((*range(1, 10),), 100, 50, 1),
        "sensitivity-unknown",
        "at most 200000 sets of rounds, coefficients that fall, or at most 1 coefficients",
        [1, 2, 3, 4, 5, 6, 7, 8],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], AccountingError)
