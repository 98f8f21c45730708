"""The server half of a federated evaluation: ratios of the three sums."""

from __future__ import annotations

from aggregator.algorithms.step import Step, StepInput
from secagg.manifest import TrainingManifest


def measured(given: StepInput[TrainingManifest]) -> Step:
    """``loss`` (nats per answer token), ``accuracy`` and ``examples``; vector and state stay.

    Under noise the count may not be positive; then only ``examples`` is stated.
    """
    sums = given.sums
    count = float(sums["count"][0])
    found = {"examples": count * given.manifest.training.weight_unit}
    if count > 0:
        found["loss"] = float(sums["loss"][0]) / count
        found["accuracy"] = float(sums["accuracy"][0]) / count
    return Step(given.vector, given.optimiser, found)
