"""When a sum of squares has the variance that it should have."""

from __future__ import annotations

from scipy.stats import chi2

SIGNIFICANCE = 1e-6  # with which a right build would have failed on other coins


def within(statistic: float, freedom: int) -> bool:
    """Whether squares of that many standard normals may well sum to ``statistic``."""
    low, high = chi2.ppf([SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2], freedom)
    return bool(low < statistic < high)
