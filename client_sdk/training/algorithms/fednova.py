"""FedNova (Wang et al. 2020, algorithm 1): the change of a device per step that it took.

d = (y - x) / |a|_1, where |a|_1 is public but for the number of steps. It is sent weighted, beside
w |a|_1, and nobody but the device knows either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from client_sdk.training.algorithms.steps import local_steps, proximal
from client_sdk.training.algorithms.work import Work, weighted
from dp.contracts.algorithms.fednova import NORMALISER
from dp.contracts.algorithms.local_steps import normaliser, steps_of
from secagg.manifest import TrainingManifest


def contribute(manifest: TrainingManifest, work: Work) -> Mapping[str, NDArray[Any]]:
    """``{"delta": float64[d]}``; without any privacy also ``weight``, ``loss``, ``normaliser``.

    Raises:
        ContributionError: as :func:`client_sdk.training.algorithms.steps.local_steps`.
    """
    training = manifest.training
    delta, loss = local_steps(manifest, work, proximal(manifest))
    norm = normaliser(training, steps_of(training, len(work.usable)))
    values = weighted(manifest, work, delta / norm, loss)
    if "weight" in values:
        values[NORMALISER] = values["weight"] * norm
    return values
