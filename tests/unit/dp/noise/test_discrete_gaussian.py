"""The discrete Gaussian: exact sampler, the bound of its sum, and whole tasks with it."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import msgspec
import numpy as np
import pytest
from scipy import stats

from dp.accounting.budget import Account, charges_of
from dp.accounting.events import DiscreteGaussianSum
from dp.accounting.rdp import epsilon_from_rdp, rdp_curve
from dp.accounting.statements import (
    ACCOUNTANT_DISCRETE_GAUSSIAN,
    ACCOUNTANT_SKELLAM_RENYI,
    ReleaseFacts,
    lines,
)
from dp.contracts import BudgetSpec, CohortSpec, check_manifest
from dp.encoding import decode, encode
from dp.errors import AccountingError
from dp.noise import discrete_gaussian
from dp.noise.discrete_gaussian import add_discrete_gaussian, gaussian_table, gaussian_weights
from dp.planning.epsilon import plan_epsilon
from secagg.errors import ConfigurationError, LocalProtocolError
from secagg.ring import add_into
from tests.kits.said import Case, refused
from tests.kits.tasks import built, seeded, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)


@pytest.mark.parametrize("sigma_squared", [1, 2, 17, 1000])
def test_weights_are_the_pmf_beyond_128_bits(sigma_squared: int) -> None:
    getcontext().prec = 90
    weights = gaussian_weights(sigma_squared)
    for k in (0, 1, 2, 5, len(weights) - 1):
        exact = (Decimal(-k * k) / (2 * sigma_squared)).exp() * 2**288
        assert abs(Decimal(weights[k]) - exact) < 2**40


@pytest.mark.parametrize("sigma_squared", [1, 1000, 44_000_000])
def test_the_tail_is_cut_below_2_to_the_minus_104(sigma_squared: int) -> None:
    cut = len(gaussian_weights(sigma_squared))
    assert 1 - cut**2 / (2 * sigma_squared * math.log(2)) <= -104
    table = gaussian_table(sigma_squared)
    assert (np.diff(table.high.astype(object)) >= 0).all()
    assert table.high[-1] == np.uint64(2**64 - 1)


@pytest.mark.parametrize("sigma_squared", [1, 6, 400])
def test_draws_follow_the_pmf_by_chi_square(sigma_squared: int) -> None:
    count = 200_000
    values = np.zeros(count, dtype=np.int64)
    add_discrete_gaussian(values, sigma_squared, seeded(sigma_squared))
    reach = math.ceil(3 * math.sqrt(sigma_squared))
    places = np.arange(-reach, reach + 1)
    weights = gaussian_weights(sigma_squared)
    total = 2 * sum(weights) - weights[0]
    inside = np.array([weights[abs(int(k))] / total for k in places])
    tail = (1 - inside.sum()) / 2
    expected = count * np.array([tail, *inside, tail])
    observed = [(values < -reach).sum(), *((values == k).sum() for k in places)]
    observed.append((values > reach).sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.parametrize("sigma_squared", [30, 10**6, 1 << 26])
def test_moments_and_independence_of_neighbouring_lanes(sigma_squared: int) -> None:
    values = np.zeros(200_000, dtype=np.int64)
    add_discrete_gaussian(values, sigma_squared, seeded(3))
    scaled = values / math.sqrt(sigma_squared)
    assert abs(scaled.mean()) < 5 / math.sqrt(len(values))
    assert abs((scaled**2).mean() - 1) < 5 * math.sqrt(2 / len(values))
    assert abs((scaled**4).mean() - 3) < 5 * math.sqrt(96 / len(values))
    assert abs((scaled[1:] * scaled[:-1]).mean()) < 5 / math.sqrt(len(values))


@pytest.mark.parametrize("sigma_squared", [0, -1, (1 << 34) + 1])
def test_impossible_variance_is_refused(sigma_squared: int) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        add_discrete_gaussian(np.zeros(1, dtype=np.int64), sigma_squared, seeded())
    assert caught.value.reason == "variance-out-of-range"


REACH = 40  # the tail of a share of parameter 4 beyond it: 10^-87


def exact_sum(share: int, shares: int) -> np.ndarray:
    """The pmf of the sum of shares by convolution, float64[2 * shares * REACH + 1]."""
    places = np.arange(-REACH, REACH + 1)
    single = np.exp(-(places.astype(float) ** 2) / (2 * share))
    single /= single.sum()
    total = single
    for _ in range(shares - 1):
        total = np.convolve(total, single)
    return total


def exact_divergence(share: int, shares: int, shift: int, order: int) -> float:
    """Renyi divergence of the exact sum of shares from itself shifted, one coordinate."""
    total = exact_sum(share, shares)
    p, q = total[shift:], total[: len(total) - shift]
    keep = (p > 1e-250) & (q > 1e-250)
    terms = order * np.log(p[keep]) + (1 - order) * np.log(q[keep])
    return float(np.log(np.exp(terms).sum()) / (order - 1))


def excess(share: int, shares: int) -> float:
    """What the bound adds to the Gaussian's cost on one coordinate: t of docs/privacy.md."""
    return rdp_curve(DiscreteGaussianSum(1, 1, share, shares, 1))[2] - 1 / (share * shares)


@pytest.mark.parametrize(("share", "shares"), [(1, 2), (1, 5), (1, 20), (2, 3), (4, 4)])
@pytest.mark.parametrize("order", [2, 3, 5])
def test_the_bound_covers_the_exact_divergence_of_the_sum(
    share: int, shares: int, order: int
) -> None:
    for shift in (1, 2):
        bound = rdp_curve(DiscreteGaussianSum(shift**2, shift, share, shares, 1))[order]
        exact = exact_divergence(share, shares, shift, order)
        assert exact <= bound
        assert bound < 1.3 * exact + 0.05


@pytest.mark.parametrize("shares", [2, 3, 8])
def test_a_sum_differs_from_a_discrete_gaussian_by_no_more_than_the_proof_says(
    shares: int,
) -> None:
    total = exact_sum(1, shares)
    places = np.arange(len(total)) - len(total) // 2
    # Where rounding of float64 is far below what is looked for, and much of the mass lies.
    inside = np.abs(places) <= 6 * math.sqrt(shares)
    shape = np.log(total[inside]) + places[inside] ** 2 / (2 * shares)
    spread = float(shape.max() - shape.min())
    assert 1e-6 < spread <= excess(1, shares)
    # The published excess is larger.
    published = 10 * sum(math.exp(-2 * math.pi**2 * k / (k + 1)) for k in range(1, shares))
    assert excess(1, shares) < published


def test_only_coordinates_that_can_move_pay_for_the_difference() -> None:
    narrow = rdp_curve(DiscreteGaussianSum(4, 4, 1, 50, 10**6))[2]
    assert narrow == pytest.approx(4 / 50 + 4 * excess(1, 50), rel=1e-9)
    wide = rdp_curve(DiscreteGaussianSum(4, 10**4, 1, 50, 10))[2]
    assert wide == pytest.approx(4 / 50 + 10 * excess(1, 50), rel=1e-9)


def test_large_shares_cost_what_the_gaussian_does_and_small_ones_more() -> None:
    large = DiscreteGaussianSum(10**6, 10**6, 10**4, 100, 10**4)
    assert rdp_curve(large)[8] == pytest.approx(4.0, rel=1e-9)
    assert rdp_curve(DiscreteGaussianSum(100, 100, 1, 100, 10**4))[8] > 4.02
    # No difference below the grain of floats is left at the smallest share that a task gets.
    assert rdp_curve(DiscreteGaussianSum(1, 1, 100, 1000, 10**6))[2] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    "event",
    [
        DiscreteGaussianSum(-1, 1, 1, 1, 1),
        DiscreteGaussianSum(1, -1, 1, 1, 1),
        DiscreteGaussianSum(1, 1, 0, 1, 1),
        DiscreteGaussianSum(1, 1, 1, 0, 1),
        DiscreteGaussianSum(1, 1, 1, 1, 0),
    ],
)
def test_impossible_events_are_typed_errors(event: DiscreteGaussianSum) -> None:
    with pytest.raises(AccountingError) as caught:
        epsilon_from_rdp(rdp_curve(event), 1e-5)
    assert caught.value.reason == "parameter-out-of-range"


def test_a_plan_costs_at_least_the_exact_gaussian() -> None:
    cost, name = plan_epsilon(1.0, 1, 1e-5, mechanism="discrete-gaussian")
    skellam, _ = plan_epsilon(1.0, 1, 1e-5, mechanism="skellam")
    gaussian, _ = plan_epsilon(1.0, 1, 1e-5, mechanism="gaussian")
    assert name == ACCOUNTANT_DISCRETE_GAUSSIAN
    assert 4.3771 < gaussian <= skellam < cost  # whose proof is the Renyi bound's


def test_a_task_with_it_decodes_accounts_and_charges_by_its_own_theorem() -> None:
    cohort = CohortSpec(size_min=5, size_max=5, survivors_min=4)
    changes = {"device_noise_multiplier": 3.0, "cohort": cohort, "budget": NO_LIMIT}
    task = statistics(("x", 4096, 1.0), mechanism="discrete-gaussian", **changes)
    manifest, skellam = built(task), built(statistics(("x", 4096, 1.0), **changes))
    assert manifest.noise.mechanism == "discrete-gaussian"
    assert manifest.noise.share_variance == skellam.noise.share_variance
    value = np.full(4096, 1 / 64)
    total = None
    for device in range(5):
        lanes = encode(manifest, {"x": value}, rotation_seed=b"", random_bytes=seeded(device))
        if total is None:
            total = lanes
        else:
            add_into(total, lanes, manifest.encoding.ring_bits)
    noise = decode(manifest, total, survivors=5, rotation_seed=b"")["x"] - 5 * value
    wanted = 5 * manifest.noise.share_variance / manifest.segments[0].scale ** 2
    assert noise.var() == pytest.approx(wanted, rel=0.1)
    (line,) = lines(manifest, [ReleaseFacts(survivors=5), ReleaseFacts(survivors=4)])
    facts = [ReleaseFacts(survivors=5), ReleaseFacts(survivors=4)]
    (other,) = lines(skellam, facts, renyi=True)
    assert line.accountant == ACCOUNTANT_DISCRETE_GAUSSIAN
    assert other.accountant == ACCOUNTANT_SKELLAM_RENYI
    assert line.epsilon == pytest.approx(other.epsilon, rel=0.01)
    account = Account(delta=manifest.budget.delta)
    for cohort, survivors in (("c", 5), ("d", 4)):
        account = account.spend(cohort, manifest, ReleaseFacts(survivors=survivors))
    assert Account.from_json(account.to_json()) == account
    assert account.epsilon("device") == pytest.approx(line.epsilon)
    assert isinstance(charges_of(manifest)[0].event(), DiscreteGaussianSum)


def test_a_share_too_large_for_one_table_is_refused() -> None:
    manifest = built(mechanism="discrete-gaussian", budget=NO_LIMIT)
    noise = msgspec.structs.replace(manifest.noise, share_variance=1 << 35)
    with pytest.raises(ConfigurationError) as caught:
        check_manifest(msgspec.structs.replace(manifest, noise=noise))
    assert caught.value.reason == "noise-too-large"


REFUSED = {
    "a sigma that nobody draws": Case(
        lambda: discrete_gaussian.add_discrete_gaussian(
            np.zeros(1, np.int64), (1 << 34) + 1, seeded()
        ),
        "variance-out-of-range",
        f"1 to {1 << 34}",
        (1 << 34) + 1,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], LocalProtocolError)
