"""Server optimisers: plain steps, or heavy-ball momentum (FedAvgM; Hsu et al., arXiv 1909.06335).

The state is part of the task: it is stored with the version that it belongs to and changes only
together with a release.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from secagg.manifest import Training

OptimiserState: TypeAlias = dict[str, NDArray[np.float64]]


def apply(
    training: Training,
    vector: NDArray[np.float64],
    state: OptimiserState,
    direction: NDArray[np.float64],
) -> tuple[NDArray[np.float64], OptimiserState]:
    """x + eta * direction, or v = beta*v + direction and x + eta * v; float64[d] each."""
    if training.server_optimiser == "sgd":
        return vector + training.server_learning_rate * direction, {}
    momentum = state.get("momentum", np.zeros_like(direction))
    momentum = training.server_momentum * momentum + direction
    return vector + training.server_learning_rate * momentum, {"momentum": momentum}
