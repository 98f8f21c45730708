"""The server half of a federated evaluation: ratios of the three sums."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secagg.manifest import Manifest


def measured(manifest: Manifest, sums: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """``loss`` (nats per answer token), ``accuracy`` and ``examples``.

    Under noise the count may be no positive number; then only ``examples`` is stated.
    """
    assert manifest.training is not None  # noqa: S101  the caller has refused that
    count = float(sums["count"][0])
    found = {"examples": count * manifest.training.weight_unit}
    if count > 0:
        found["loss"] = float(sums["loss"][0]) / count
        found["accuracy"] = float(sums["accuracy"][0]) / count
    return found
