"""The continuous Gaussian mechanism: for plans and cross-checks only.

The import of dp-accounting costs half a second and scipy, so nothing that a device needs to judge
a manifest imports this module.
"""

from __future__ import annotations

import math

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from dp.errors import AccountingError


def _event(noise_multiplier: float, rounds: int, sampling_rate: float) -> dp_accounting.DpEvent:
    event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(noise_multiplier)
    if sampling_rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(sampling_rate, event)
    return dp_accounting.SelfComposedDpEvent(event, rounds)


def pld_epsilon(
    noise_multiplier: float, rounds: int, delta: float, sampling_rate: float = 1.0
) -> float:
    """Epsilon by privacy loss distributions (pessimistic estimate), add-or-remove adjacency."""
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(_event(noise_multiplier, rounds, sampling_rate))
    return _finite(accountant.get_epsilon(delta))


def rdp_epsilon(
    noise_multiplier: float, rounds: int, delta: float, sampling_rate: float = 1.0
) -> float:
    """Epsilon by Renyi differential privacy, add-or-remove adjacency.

    dp-accounting 0.6 does not double the sensitivity under replace-one (its issue 378), so that
    relation is not offered.
    """
    accountant = RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    accountant.compose(_event(noise_multiplier, rounds, sampling_rate))
    return _finite(accountant.get_epsilon(delta))


def _finite(epsilon: float) -> float:
    value = float(epsilon)
    if math.isnan(value):
        raise AccountingError("accountant-failed", "The accountant returned no number.")
    return value
