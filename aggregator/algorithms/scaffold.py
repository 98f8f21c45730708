"""The server half of SCAFFOLD, option II (Karimireddy et al., ICML 2020, algorithm 1, line 17).

x <- x + eta_g (1/m) sum of dy_k and c <- c + (1/N) sum of dc_k, with m contributors out of N. The
second sum is never sent: dc_k = -c - dy_k / (K eta), so it is -m c - (sum of dy_k) / (K eta).

c is kept in float32 as devices get it, in the model's own file: what they subtract and what is
subtracted here are the same numbers.
"""

from __future__ import annotations

import numpy as np

from aggregator.algorithms.optimisers import OptimiserState
from aggregator.algorithms.step import Direction, StepInput
from dp.contracts.algorithms.scaffold import control_step
from secagg.errors import LocalProtocolError, SecaggError
from secagg.manifest import TrainingManifest


def controlled(given: StepInput[TrainingManifest]) -> tuple[Direction, OptimiserState]:
    """The mean change of the vector, metrics, and ``control``: the next c, of float32 values.

    Both are float64[d]. Without a state c is zero.

    Raises:
        LocalProtocolError: ``survivors-missing``.
        SecaggError: ``update-not-finite``.
    """
    training, survivors = given.manifest.training, given.survivors
    if survivors < 1:
        raise LocalProtocolError(
            "survivors-missing",
            "SCAFFOLD divides by the number of contributors.",
            expected=">= 1",
            found=survivors,
        )
    total = given.sums["delta"]
    control = given.optimiser.get("control", np.zeros(len(given.vector)))
    changes = -survivors * control - total / control_step(training)
    with np.errstate(over="ignore"):
        after = (control + changes / training.population).astype(np.float32)
    if not np.isfinite(after).all():
        raise SecaggError(
            "update-not-finite",
            "The step would make the control variate infinite or not a number.",
            remedy="Raise local_learning_rate or lower update_clip.",
        )
    loss = given.sums.get("loss")
    metrics = {} if loss is None else {"loss": float(loss[0]) / survivors}
    return (total / survivors, metrics), {"control": after.astype(np.float64)}
