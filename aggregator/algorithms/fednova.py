"""FedNova (Wang et al. 2020, section 4): tau_eff times the mean of the changes per step."""

from __future__ import annotations

from aggregator.algorithms.averaging import averaged_delta
from aggregator.algorithms.step import Direction, Sums
from dp.contracts.algorithms.fednova import NORMALISER, public_steps
from secagg.errors import SecaggError
from secagg.manifest import TrainingManifest


def rescaled(manifest: TrainingManifest, sums: Sums) -> Direction:
    """tau_eff * sum(w d) / sum(w), with tau_eff = sum(w |a|_1) / sum(w), or public under noise.

    Raises:
        SecaggError: ``weights-empty`` if the devices' weights sum to nothing.
    """
    mean, metrics = averaged_delta(manifest, sums)
    if NORMALISER not in sums:
        steps = public_steps(manifest.training)
    elif metrics["weight"] > 0:
        steps = float(sums[NORMALISER][0]) / metrics["weight"]
    else:
        raise SecaggError(
            "weights-empty",
            "The weights of the cohort do not sum to a positive number.",
            expected="> 0",
            found=metrics["weight"],
        )
    return steps * mean, {**metrics, "effective_steps": steps}
