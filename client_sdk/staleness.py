"""FedBuff's weight of a stale update, given by the device itself (Nguyen et al. 2022, section 5).

The update is clipped first and weighed then: the other way round a long update would be scaled into
the clip, and count in full however stale it is. s <= 1, so what is sent keeps the clip's bound, and
the encoding's exact integer clip finds nothing to do.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dp.contracts.fedbuff import staleness_weight
from secagg.manifest import Manifest


def weighed(
    manifest: Manifest, values: Mapping[str, np.ndarray], staleness: int
) -> dict[str, np.ndarray]:
    """``values`` with ``delta`` clipped to its segment's bound, then times s(staleness).

    A ``delta`` that is not finite stays so: what it counts as is the encoding's rule.
    """
    delta = np.asarray(values["delta"], dtype=np.float64)
    peak = float(np.abs(delta).max(initial=0.0))
    if not np.isfinite(peak) or peak == 0:
        return dict(values)
    norm = peak * float(np.linalg.norm(delta / peak))
    clip = next(segment.clip for segment in manifest.segments if segment.name == "delta")
    return {**values, "delta": staleness_weight(staleness) * min(1.0, clip / norm) * delta}
