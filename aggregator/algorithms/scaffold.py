"""The server half of SCAFFOLD, option II (Karimireddy et al., ICML 2020, algorithm 1, line 17).

x <- x + eta_g (1/m) sum of dy_k and c <- c + (1/N) sum of dc_k, with m contributors out of N. The
second sum is never sent: dc_k = -c - dy_k / (K eta), so it is -m c - (sum of dy_k) / (K eta).

c is kept in float32 as devices get it, in the model's own file: what they subtract and what is
subtracted here are the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dp.contracts.scaffold import control_step
from secagg.errors import LocalProtocolError, SecaggError
from secagg.manifest import Manifest


def controlled(
    manifest: Manifest,
    sums: Mapping[str, NDArray[np.float64]],
    control: NDArray[np.float64],
    survivors: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, float]]:
    """The mean change of the vector, the next c (both float64[d], c of float32 values), metrics.

    Raises:
        LocalProtocolError: ``survivors-missing``.
        SecaggError: ``update-not-finite``.
    """
    training = manifest.training
    assert training is not None  # noqa: S101  the caller has refused that
    if survivors < 1:
        raise LocalProtocolError(
            "survivors-missing",
            "SCAFFOLD divides by the number of contributors.",
            expected=">= 1",
            found=survivors,
        )
    total = sums["delta"]
    changes = -survivors * control - total / control_step(training)
    with np.errstate(over="ignore"):
        after = (control + changes / training.population).astype(np.float32)
    if not np.isfinite(after).all():
        raise SecaggError(
            "update-not-finite",
            "The step would make the control variate infinite or not a number.",
            remedy="Raise local_learning_rate or lower update_clip.",
        )
    metrics = {"loss": float(sums["loss"][0]) / survivors} if "loss" in sums else {}
    return total / survivors, after.astype(np.float64), metrics
