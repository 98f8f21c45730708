"""The continuous Gaussian mechanism: for plans and cross-checks only.

Three accountants, of which the smallest sound one is taken and named: the closed form (Balle, Wang,
"Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, Theorem 8) without sampling,
privacy loss distributions and Renyi divergences (dp-accounting) with it. Their order is
exact <= PLD <= RDP, down to a delta of about 1e-12, below which the PLD's truncated tails make it
the larger one and then infinite. Every one is rounded up.

Opacus' ``gdp`` accountant is a limit theorem without a bound on its error, and understates; nothing
here or in a report uses it.

The import of dp-accounting costs half a second and scipy, so nothing that a device needs to judge
a manifest imports this module.
"""

from __future__ import annotations

import logging
import math

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from dp.accounting.events import Adjacency, Composed, GaussianRelease, PoissonReplaced
from dp.accounting.gaussian import epsilon_of_shift
from dp.accounting.rdp import epsilon_from_rdp, rdp_curve
from dp.errors import AccountingError

ACCOUNTANT_EXACT = "exact/balle-wang-2018"
ACCOUNTANT_PLD = "pld/dp-accounting"
ACCOUNTANT_RDP = "rdp/dp-accounting"
ACCOUNTANT_REPLACED = "gaussian-rdp/mironov-2017+poisson/replace-one"
_PLD_EPSILON_MAX = 200.0  # beyond, the distributions have millions of points and nobody cares

logging.getLogger("absl").addFilter(lambda record: "failed to converge" not in record.getMessage())


def gaussian_epsilon(
    noise_multiplier: float,
    rounds: int,
    delta: float,
    sampling_rate: float = 1.0,
    adjacency: Adjacency = "add-or-remove",
) -> tuple[float, str]:
    """The smallest epsilon that one of the accountants vouches for, and its name.

    ``noise_multiplier`` is noise over clip; between neighbours that exchange a record a sum moves
    by two clips. For sampled batches under that adjacency the Renyi divergences are ours
    (docs/sampling.md), at integer orders.

    Raises:
        AccountingError: ``parameter-out-of-range``, ``accountant-failed``.
    """
    whole = exact_epsilon(noise_multiplier, rounds, delta, adjacency)
    found = [(whole, ACCOUNTANT_EXACT)]
    if sampling_rate < 1:
        if adjacency == "replace-one":
            event = PoissonReplaced(sampling_rate, GaussianRelease(noise_multiplier))
            curve = rdp_curve(Composed(((event, rounds),)))
            found.append((epsilon_from_rdp(curve, delta), ACCOUNTANT_REPLACED))
        else:
            found.append(
                (rdp_epsilon(noise_multiplier, rounds, delta, sampling_rate), ACCOUNTANT_RDP)
            )
        if min(found)[0] <= _PLD_EPSILON_MAX:
            found.append(
                (
                    pld_epsilon(noise_multiplier, rounds, delta, sampling_rate, adjacency),
                    ACCOUNTANT_PLD,
                )
            )
    return min(found)


def exact_epsilon(
    noise_multiplier: float, rounds: int, delta: float, adjacency: Adjacency = "add-or-remove"
) -> float:
    """Epsilon of ``rounds`` unsampled releases, to about 1e-9, rounded up.

    With m = sqrt(rounds) / z (half of z under ``replace-one``), that of
    :func:`dp.accounting.gaussian.epsilon_of_shift`.

    Raises:
        AccountingError: ``parameter-out-of-range``.
    """
    _checked(noise_multiplier, rounds, delta)
    return epsilon_of_shift(math.sqrt(rounds) / noise_multiplier * _clips(adjacency), delta)


def pld_epsilon(
    noise_multiplier: float,
    rounds: int,
    delta: float,
    sampling_rate: float = 1.0,
    adjacency: Adjacency = "add-or-remove",
) -> float:
    """Epsilon by privacy loss distributions (dp-accounting's pessimistic estimate: rounded up).

    Under ``replace-one`` the library's distributions are those of two clips (unlike its Renyi
    accountant); a test compares them with the closed form.

    Raises:
        AccountingError: ``parameter-out-of-range``, ``accountant-failed``.
    """
    _checked(noise_multiplier, rounds, delta, sampling_rate)
    relation = dp_accounting.NeighboringRelation
    accountant = PLDAccountant(
        relation.REPLACE_ONE if adjacency == "replace-one" else relation.ADD_OR_REMOVE_ONE
    )
    return _epsilon(accountant, _event(noise_multiplier, rounds, sampling_rate), delta)


def rdp_epsilon(
    noise_multiplier: float,
    rounds: int,
    delta: float,
    sampling_rate: float = 1.0,
    adjacency: Adjacency = "add-or-remove",
) -> float:
    """Epsilon by Renyi differential privacy (dp-accounting), rounded up.

    The library's accountant takes the relation ``REPLACE_ONE`` and does not double the sensitivity
    (google/differential-privacy issue 378): it is asked about half the noise instead, and refused
    where sampling makes that wrong.

    Raises:
        AccountingError: ``parameter-out-of-range``, ``accountant-failed``,
            ``adjacency-unaccounted``.
    """
    _checked(noise_multiplier, rounds, delta, sampling_rate)
    if adjacency == "replace-one" and sampling_rate < 1:
        raise AccountingError(
            "adjacency-unaccounted",
            "The Renyi accountant does not know sampling under replace-one.",
            expected="add-or-remove or zero-out",
            found=adjacency,
            remedy="Leave the sampling out, or use the accountant by privacy loss distributions.",
        )
    accountant = RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    event = _event(noise_multiplier / _clips(adjacency), rounds, sampling_rate)
    return _epsilon(accountant, event, delta)


def _clips(adjacency: Adjacency) -> int:
    return 2 if adjacency == "replace-one" else 1


def _event(noise_multiplier: float, rounds: int, sampling_rate: float) -> dp_accounting.DpEvent:
    event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(noise_multiplier)
    if sampling_rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(sampling_rate, event)
    return dp_accounting.SelfComposedDpEvent(event, rounds)


def _checked(
    noise_multiplier: float, rounds: int, delta: float, sampling_rate: float = 1.0
) -> None:
    """Refuse what is out of range before the library divides by it."""
    for name, value, low, high, closed in (
        ("noise multiplier", noise_multiplier, 0, math.inf, False),
        ("number of rounds", rounds, 0, 10**9, True),
        ("delta", delta, 0, 1, False),
        ("sampling rate", sampling_rate, 0, 1, True),
    ):
        if not (low < value < high or (closed and value == high)):
            raise AccountingError(
                "parameter-out-of-range",
                f"The {name} is out of range.",
                expected=f"{low} < value {'<=' if closed else '<'} {high}",
                found=float(value) if value < 1e300 else math.inf,
            )


def _epsilon(
    accountant: dp_accounting.PrivacyAccountant, event: dp_accounting.DpEvent, delta: float
) -> float:
    try:
        value = float(accountant.compose(event).get_epsilon(delta))
    except (ArithmeticError, ValueError, MemoryError) as error:
        raise AccountingError(
            "accountant-failed",
            f"The accountant found no number: {type(error).__name__}: {error}.",
            remedy="Use parameters of ordinary size.",
        ) from error
    if math.isnan(value):
        raise AccountingError("accountant-failed", "The accountant returned no number.")
    return max(value, 0.0) * (1 + 1e-9)
