"""The server half of zeroth order: from K summed slopes to a direction in the adapter's space."""

from __future__ import annotations

import numpy as np

from aggregator.algorithms.averaging import mean_of
from aggregator.algorithms.optimisers import OptimiserState
from aggregator.algorithms.step import Direction, StepInput
from secagg.lora.directions import direction
from secagg.manifest import TrainingManifest


def expanded(given: StepInput[TrainingManifest]) -> tuple[Direction, OptimiserState]:
    """-(1/K) sum over s of (mean slope s) z_s; float64[d], and metrics; no state.

    E[z z^T] is the identity, so its expectation is minus the gradient (up to the perturbation's
    square).
    """
    slopes, metrics = mean_of(given.manifest, given.sums, "gradient")
    seed, length = given.manifest.adapter.seed, len(given.vector)
    result = np.zeros(length)
    for number, slope in enumerate(slopes):
        result -= slope * direction(seed, given.version, number, length)
    return (result / len(slopes), metrics), {}
