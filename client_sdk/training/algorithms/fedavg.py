"""FedAvg and FedProx: several local steps, then the change of the adapter.

FedAvg (McMahan et al. 2017, algorithm 1): y <- y - eta g, then y - x. FedProx (Li et al. 2020,
equation 2) adds the pull mu (y - x) towards the global model to every gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from client_sdk.training.algorithms.steps import local_steps, proximal
from client_sdk.training.algorithms.work import Work, weighted
from secagg.manifest import TrainingManifest


def contribute(manifest: TrainingManifest, work: Work) -> Mapping[str, NDArray[Any]]:
    """``{"delta": float64[d]}``; without any privacy also ``weight`` and ``loss``, float64[1].

    Unweighted with privacy. Without, ``delta`` and ``loss`` (the mean training loss over the local
    steps, each before its step) are multiplied by the hidden ``weight`` = min(examples /
    weight_unit, 1).

    Raises:
        ContributionError: as :func:`client_sdk.training.algorithms.steps.local_steps`.
    """
    delta, loss = local_steps(manifest, work, proximal(manifest))
    return weighted(manifest, work, delta, loss)
