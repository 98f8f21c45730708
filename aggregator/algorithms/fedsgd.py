"""FedSGD (McMahan et al., 2017): one global step on the sum of clipped per-example gradients."""

from __future__ import annotations

from aggregator.algorithms.step import Direction, Sums
from secagg.manifest import TrainingManifest


def descent(manifest: TrainingManifest, sums: Sums) -> Direction:
    """Minus the summed gradient over the public denominator (the expected number of examples).

    The real number of examples is a secret of the Poisson draw and is never sent.
    """
    return -sums["gradient"] / manifest.training.denominator, {}
