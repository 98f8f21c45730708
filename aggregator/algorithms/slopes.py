"""The server half of zeroth order: from K summed slopes to a direction in the adapter's space."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from aggregator.algorithms.averaging import mean_of
from secagg.directions import direction
from secagg.manifest import Manifest


def expanded(
    manifest: Manifest, sums: Mapping[str, NDArray[np.float64]], length: int, version: int
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """-(1/K) sum over s of (mean slope s) z_s; float64[length].

    E[z z^T] is the identity, so its expectation is minus the gradient (up to the perturbation's
    square).
    """
    assert manifest.adapter is not None  # noqa: S101  the caller has refused that
    slopes, metrics = mean_of(manifest, sums, "gradient")
    result = np.zeros(length)
    for number, slope in enumerate(slopes):
        result -= slope * direction(manifest.adapter.seed, version, number, length)
    return result / len(slopes), metrics
