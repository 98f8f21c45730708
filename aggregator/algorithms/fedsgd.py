"""FedSGD (McMahan et al., 2017): one global step on the sum of clipped per-example gradients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secagg.manifest import Manifest


def descent(
    manifest: Manifest, sums: Mapping[str, NDArray[np.float64]]
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Minus the summed gradient over the public denominator (the expected number of examples).

    The real number of examples is a secret of the Poisson draw and is never sent.
    """
    assert manifest.training is not None  # noqa: S101  the caller has refused that
    return -sums["gradient"] / manifest.training.denominator, {}
