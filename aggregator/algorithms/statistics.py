"""Federated statistics: the sum itself is the result."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secagg.manifest import Manifest


def concatenated(
    manifest: Manifest, sums: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float32]:
    """The sums of all segments in the manifest's order, float32."""
    parts = [sums[segment.name] for segment in manifest.segments]
    return np.concatenate(parts).astype(np.float32)
