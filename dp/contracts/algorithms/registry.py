"""The algorithms by name; nothing else compares one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dp.contracts.algorithms.declaration import Algorithm
from dp.contracts.algorithms.evaluation import Evaluation
from dp.contracts.algorithms.fedavg import FedAvg
from dp.contracts.algorithms.fedbuff import FedBuff
from dp.contracts.algorithms.federated_sum import FederatedSum
from dp.contracts.algorithms.fednova import FedNova
from dp.contracts.algorithms.fedopt import FedOpt
from dp.contracts.algorithms.fedprox import FedProx
from dp.contracts.algorithms.fedsgd import FedSGD
from dp.contracts.algorithms.scaffold import Scaffold
from dp.contracts.algorithms.zeroth_order import ZerothOrder
from dp.contracts.optimisers import NAMED_AFTER
from secagg.errors import ConfigurationError
from secagg.manifest import Manifest

ALGORITHMS: dict[str, Algorithm] = {
    "evaluation": Evaluation(),
    "fedavg": FedAvg(),
    "fedbuff": FedBuff(),
    **{name: FedOpt(optimiser) for name, optimiser in NAMED_AFTER.items()},
    "fednova": FedNova(),
    "fedprox": FedProx(),
    "fedsgd": FedSGD(),
    "scaffold": Scaffold(),
    "sum": FederatedSum(),
    "zeroth-order": ZerothOrder(),
}


def algorithm_named(name: str) -> Algorithm:
    """The declaration of an algorithm.

    Raises:
        ConfigurationError: ``algorithm-unknown``.
    """
    try:
        return ALGORITHMS[name]
    except KeyError:
        raise ConfigurationError(
            "algorithm-unknown",
            "No such algorithm.",
            expected=sorted(ALGORITHMS),
            found=name,
        ) from None


def algorithm_of(manifest: Manifest) -> Algorithm:
    """The declaration of a manifest's algorithm.

    Raises:
        ConfigurationError: ``algorithm-unknown``.
    """
    return algorithm_named(manifest.algorithm)


def names_where(asked: Callable[[Algorithm], bool]) -> list[str]:
    """Names of the algorithms whose declaration says so, sorted."""
    return sorted(name for name, algorithm in ALGORITHMS.items() if asked(algorithm))


def has_control(manifest: Manifest) -> bool:
    """Whether the model comes with a control variate, and devices keep one."""
    return algorithm_of(manifest).keeps_control


def suggested(name: str, privacy: str, population: int) -> Mapping[str, Any]:
    """Fields of ``TrainingSpec`` to start from with an algorithm; empty where it knows none.

    Raises:
        ConfigurationError: ``algorithm-unknown``.
    """
    return algorithm_named(name).suggested(privacy, population)
