"""Exact divergences between distributions of integers."""

from __future__ import annotations

import numpy as np
from scipy import special


def skellam(variance: int, reach: int) -> np.ndarray:
    return np.asarray(special.ive(np.abs(np.arange(-reach, reach + 1)), variance))


def discrete_gaussian_sum(share: float, shares: int, reach: int) -> np.ndarray:
    one = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * share))
    total = one / one.sum()
    for _ in range(shares - 1):
        total = np.convolve(total, one / one.sum(), mode="same")
    return total


def log_moment(order: float, p: np.ndarray, q: np.ndarray) -> float:
    """(order - 1) times the Renyi divergence, where both are not negligible."""
    keep = (p > 1e-280) & (q > 1e-280)
    return float(special.logsumexp(order * np.log(p[keep]) - (order - 1) * np.log(q[keep])))
