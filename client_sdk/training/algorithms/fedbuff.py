"""The device half of FedBuff (Nguyen et al., AISTATS 2022, algorithm 2): local steps from whatever
version the device began with.

How stale that is becomes known when the cohort closes: ``client_sdk.payload`` weighs the update
then, before it is encoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_sdk.training.algorithms.steps import local_steps
from client_sdk.training.algorithms.work import Work
from secagg.manifest import TrainingManifest


def contribute(manifest: TrainingManifest, work: Work) -> Mapping[str, NDArray[Any]]:
    """``{"delta": float64[d]}``; without any privacy also ``loss``, float64[1]. Unweighted.

    Raises:
        ContributionError: as :func:`client_sdk.training.algorithms.steps.local_steps`.
    """
    delta, loss = local_steps(manifest, work)
    if [segment.name for segment in manifest.segments] == ["delta"]:
        return {"delta": delta}
    return {"delta": delta, "loss": np.array([loss])}
