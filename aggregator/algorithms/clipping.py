"""The server half of adaptive clipping: the sums in real units, and the next clip."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from aggregator.algorithms.optimisers import OptimiserState
from dp.ledger.records import ClipMove
from dp.noise.adaptive_clip import below_sum_of, next_clip, unscaled
from secagg.errors import LocalProtocolError
from secagg.manifest import Manifest


def real_sums(
    manifest: Manifest, sums: Mapping[str, NDArray[np.float64]], state: OptimiserState
) -> tuple[Mapping[str, NDArray[np.float64]], ClipMove | None]:
    """The sums times C / C_0, and how C moves; a fixed clip changes nothing.

    Args:
        state: of the version that the devices trained on; ``clip``, float64[1].

    Raises:
        LocalProtocolError: ``clip-missing``: the state belongs to no version of this task.
        MechanismError: ``clip-out-of-range``.
    """
    if manifest.clip_adaptation is None:
        return sums, None
    if "clip" not in state:
        raise LocalProtocolError("clip-missing", "The state of the version holds no clip.")
    clip, below = float(state["clip"][0]), below_sum_of(manifest, sums)
    move = ClipMove(clip=next_clip(manifest, clip, below), below_units=below)
    return unscaled(manifest, sums, clip), move
