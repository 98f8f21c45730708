"""The device half of SCAFFOLD (Karimireddy et al., ICML 2020, algorithm 1, lines 7 to 12).

    y <- y - eta (g(y) - c_k + c), K times from x; sent is y - x

g is clipped and noised first where the task says so. c_k is not moved here:
``client_sdk.rounds.scaffold_control`` does that when a release is proven to hold this device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_sdk.errors import ContributionError
from client_sdk.training.algorithms.steps import local_steps
from client_sdk.training.algorithms.work import Work
from secagg.manifest import TrainingManifest


def contribute(manifest: TrainingManifest, work: Work) -> Mapping[str, NDArray[Any]]:
    """``{"delta": float64[d]}``; without any privacy also ``loss``, float64[1]. Unweighted.

    Raises:
        ContributionError: ``control-missing``, or as
            :func:`client_sdk.training.algorithms.steps.local_steps`.
    """
    if work.correction is None:
        raise ContributionError(
            "control-missing",
            "SCAFFOLD trains with the control variates of server and device.",
            remedy="Take part through client_sdk.Client, which keeps them.",
        )
    correction = torch.from_numpy(np.array(work.correction, dtype=np.float64))

    def controlled(_moved: Tensor) -> Tensor:
        return correction

    delta, loss = local_steps(manifest, work, controlled)
    if [segment.name for segment in manifest.segments] == ["delta"]:
        return {"delta": delta}
    return {"delta": delta, "loss": np.array([loss])}
