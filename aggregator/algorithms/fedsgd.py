"""FedSGD (McMahan et al., 2017): one global step on the sum of clipped per-example gradients."""

from __future__ import annotations

from aggregator.algorithms.step import Direction, Sums
from secagg.manifest import Manifest, training_of


def descent(manifest: Manifest, sums: Sums) -> Direction:
    """Minus the summed gradient over the public denominator (the expected number of examples).

    The real number of examples is a secret of the Poisson draw and is never sent.
    """
    return -sums["gradient"] / training_of(manifest).denominator, {}
