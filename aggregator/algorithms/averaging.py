"""FedAvg (McMahan et al., AISTATS 2017, algorithm 1) and the server half of FedProx."""

from __future__ import annotations

from aggregator.algorithms.step import Direction, Sums
from secagg.errors import SecaggError
from secagg.manifest import TrainingManifest


def averaged_delta(manifest: TrainingManifest, sums: Sums) -> Direction:
    """Sum of w*delta over the public denominator, or over the sum of w when that is 0.

    Raises:
        SecaggError: ``weights-empty`` if the devices' weights sum to nothing.
    """
    return mean_of(manifest, sums, "delta")


def mean_of(manifest: TrainingManifest, sums: Sums, name: str) -> Direction:
    """As :func:`averaged_delta`, of the segment ``name``."""
    denominator = manifest.training.denominator
    metrics = {}
    if "weight" in sums:
        weight = float(sums["weight"][0])
        metrics["weight"] = weight
        if "loss" in sums and weight > 0:
            metrics["loss"] = float(sums["loss"][0]) / weight
        if denominator == 0:
            denominator = weight
    if not denominator > 0:
        raise SecaggError(
            "weights-empty",
            "The weights of the cohort do not sum to a positive number.",
            expected="> 0",
            found=denominator,
        )
    return sums[name] / denominator, metrics
