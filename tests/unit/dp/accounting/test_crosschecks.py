"""Our epsilons beside other accountants and closed forms: exact <= PLD <= RDP where they meet."""

from __future__ import annotations

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from opacus.accountants import GaussianAccountant, PRVAccountant, RDPAccountant
from scipy import special

from dp.accounting.events import Composed, GaussianRelease, PoissonSampled, SkellamRelease
from dp.accounting.statements import epsilon_of
from dp.errors import AccountingError
from dp.planning.gaussian import exact_epsilon, gaussian_epsilon, pld_epsilon, rdp_epsilon

ROOT = Path(__file__).resolve().parents[4]
UNSAMPLED = [(1.0, 1, 1e-5), (0.5, 1, 1e-8), (5.0, 100, 1e-6), (20.0, 10, 1e-3), (3.0, 40, 1e-11)]
SAMPLED = [
    (1.1, 256 / 60_000, 14_062, 1e-5, 2.3817, 2.5966),
    (2.0, 0.1, 100, 1e-6, 2.6750, 2.9142),
    (1.0, 0.25, 8, 1e-5, None, None),
    (0.8, 0.02, 500, 1e-7, None, None),
]


def gaussian_delta(noise_multiplier: float, rounds: int, epsilon: float) -> mpmath.mpf:
    """Balle and Wang (2018), Theorem 8, in sixty digits."""
    with mpmath.workdps(60):
        mu = mpmath.sqrt(rounds) / mpmath.mpf(noise_multiplier)
        e = mpmath.mpf(epsilon)
        return mpmath.ncdf(mu / 2 - e / mu) - mpmath.exp(e) * mpmath.ncdf(-mu / 2 - e / mu)


@pytest.mark.parametrize(
    ("noise_multiplier", "rounds", "delta"),
    [*UNSAMPLED, (1e-2, 1, 1e-5), (1e3, 1, 1e-9), (1e4, 3, 1e-14), (1.0, 1, 1e-60), (7.0, 9, 0.3)],
)
def test_the_closed_form_is_tight_and_on_the_safe_side(
    noise_multiplier: float, rounds: int, delta: float
) -> None:
    epsilon = exact_epsilon(noise_multiplier, rounds, delta)
    assert gaussian_delta(noise_multiplier, rounds, epsilon) <= delta
    if epsilon > 0:
        assert gaussian_delta(noise_multiplier, rounds, epsilon * (1 - 1e-6) - 1e-9) > delta


@pytest.mark.parametrize(("noise_multiplier", "rounds", "delta"), UNSAMPLED)
def test_exact_below_pld_below_rdp_below_ours(
    noise_multiplier: float, rounds: int, delta: float
) -> None:
    exact = exact_epsilon(noise_multiplier, rounds, delta)
    pld = pld_epsilon(noise_multiplier, rounds, delta)
    rdp = rdp_epsilon(noise_multiplier, rounds, delta)
    event = Composed(((GaussianRelease(noise_multiplier), rounds),))
    ours = epsilon_of(event, delta, renyi=True)
    assert exact <= pld <= rdp <= ours * (1 + 1e-9)
    assert exact <= epsilon_of(event, delta) <= exact * (1 + 1e-9)
    assert pld < exact * 1.001
    assert gaussian_epsilon(noise_multiplier, rounds, delta) == (exact, "exact/balle-wang-2018")


@pytest.mark.parametrize(("noise_multiplier", "rate", "rounds", "delta", "pld", "rdp"), SAMPLED)
def test_sampled_gaussians_keep_the_order_and_the_known_values(
    noise_multiplier: float,
    rate: float,
    rounds: int,
    delta: float,
    pld: float | None,
    rdp: float | None,
) -> None:
    found = pld_epsilon(noise_multiplier, rounds, delta, rate)
    renyi = rdp_epsilon(noise_multiplier, rounds, delta, rate)
    general = epsilon_of(
        Composed(((PoissonSampled(rate, GaussianRelease(noise_multiplier)), rounds),)), delta
    )
    assert found <= renyi <= general
    assert found <= exact_epsilon(noise_multiplier, rounds, delta)
    assert gaussian_epsilon(noise_multiplier, rounds, delta, rate) == (found, "pld/dp-accounting")
    if pld is not None:
        assert found == pytest.approx(pld, abs=1e-4)
        assert renyi == pytest.approx(rdp, abs=1e-4)


@pytest.mark.filterwarnings("ignore:GDP accounting")
@pytest.mark.parametrize(("noise_multiplier", "rate", "rounds", "delta", "pld", "rdp"), SAMPLED)
def test_opacus_agrees_where_it_is_sound_and_understates_where_it_is_not(
    noise_multiplier: float,
    rate: float,
    rounds: int,
    delta: float,
    pld: float | None,
    rdp: float | None,
) -> None:
    """Its ``rdp`` is the theorem of dp-accounting's; its ``prv`` brackets the truth to 0.01."""

    def opacus(kind: type) -> float:
        accountant = kind()
        accountant.history = [(noise_multiplier, rate, rounds)]
        return float(accountant.get_epsilon(delta))

    found = pld_epsilon(noise_multiplier, rounds, delta, rate)
    assert opacus(RDPAccountant) == pytest.approx(
        rdp_epsilon(noise_multiplier, rounds, delta, rate), rel=0.02
    )
    assert found * (1 - 1e-3) <= opacus(PRVAccountant) <= found + 0.02
    assert opacus(GaussianAccountant) < found * (1 - 1e-3)


@pytest.mark.filterwarnings("ignore:GDP accounting")
def test_the_limit_theorems_accountant_understates_by_a_third() -> None:
    """``gdp`` at few, large steps: what it would have promised for one release."""
    accountant = GaussianAccountant()
    accountant.history = [(1.0, 0.25, 8)]
    assert accountant.get_epsilon(1e-5) < 0.8 * pld_epsilon(1.0, 8, 1e-5, 0.25)


def test_no_code_of_ours_can_choose_the_limit_theorem() -> None:
    for package in ("dp", "client_sdk", "aggregator", "secagg_cli", "secagg"):
        for source in (ROOT / package).rglob("*.py"):
            text = source.read_text()
            assert "GaussianAccountant" not in text, source
            assert "opacus.accountants" not in text, source
            assert "PrivacyEngine(" not in text, source


def test_below_its_reach_the_pld_steps_aside() -> None:
    """Its truncated tails give infinity at deltas that the Renyi accountant still serves."""
    assert pld_epsilon(2.0, 100, 1e-18, 0.1) == math.inf
    epsilon, name = gaussian_epsilon(2.0, 100, 1e-18, 0.1)
    assert name == "rdp/dp-accounting"
    assert 5.0 < epsilon < 7.0


def test_hopeless_gaussians_cost_infinity_and_mighty_ones_nothing() -> None:
    assert exact_epsilon(1e-9, 1, 1e-5) == math.inf
    assert exact_epsilon(1e9, 1, 1e-5) == 0.0
    assert gaussian_epsilon(1e-9, 1, 1e-5)[0] == math.inf
    assert gaussian_epsilon(1e9, 1, 1e-5, 0.5)[0] == 0.0


@pytest.mark.parametrize("outcome", [OverflowError("too large"), MemoryError(), math.nan])
def test_an_accountant_that_finds_no_number_is_a_typed_error(
    outcome: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_epsilon(self: object, delta: float) -> object:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("dp.planning.gaussian.RdpAccountant.get_epsilon", get_epsilon)
    with pytest.raises(AccountingError) as caught:
        rdp_epsilon(1.0, 1, 1e-5)
    assert caught.value.reason == "accountant-failed"


def test_a_distribution_too_wide_for_the_pld_is_not_tried() -> None:
    epsilon, name = gaussian_epsilon(0.01, 100, 1e-6, 0.5)
    assert name != "pld/dp-accounting"
    assert epsilon > 1e5


@pytest.mark.parametrize(("variance", "shift", "rounds"), [(30, 3, 1), (30, 1, 6), (400, 20, 4)])
def test_scalar_skellam_keeps_the_order_too(variance: int, shift: int, rounds: int) -> None:
    """Exact by the convolved distribution, PLD by dp-accounting, RDP by ours; one coordinate."""
    reach = 40 * math.isqrt(variance) + shift
    weights = special.ive(np.abs(np.arange(-reach, reach + 1)), variance)
    upper = dict(zip(range(-reach, reach + 1), weights / weights.sum(), strict=True))
    moved = {k + shift: p for k, p in upper.items()}
    common = {k: (upper[k], moved[k]) for k in upper if k in moved}
    distribution = privacy_loss_distribution.from_two_probability_mass_functions(
        {k: math.log(a) for k, (a, b) in common.items() if a > 1e-290 and b > 1e-290},
        {k: math.log(b) for k, (a, b) in common.items() if a > 1e-290 and b > 1e-290},
        value_discretization_interval=1e-4,
    )
    ours = Composed(((SkellamRelease(shift**2, shift, variance), rounds),))
    for delta in (1e-3, 1e-6):
        pld = distribution.self_compose(rounds).get_epsilon_for_delta(delta)
        bound = epsilon_of(ours, delta)
        assert pld <= bound < 1.6 * pld
        if rounds == 1:
            assert exact_discrete(common, delta) <= pld * (1 + 1e-9) + 1e-9


def exact_discrete(pairs: dict[int, tuple[float, float]], delta: float) -> float:
    """Smallest epsilon with sum of (p - e^epsilon q)+ <= delta, by bisection."""
    p, q = (np.array(column) for column in zip(*pairs.values(), strict=True))
    low, high = 0.0, 200.0
    for _ in range(100):
        middle = (low + high) / 2
        excess = float(np.maximum(p - math.exp(middle) * q, 0).sum())
        low, high = (low, middle) if excess <= delta else (middle, high)
    return low
