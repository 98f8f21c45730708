"""The algorithms by name; nothing else compares one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dp.contracts.algorithm import Algorithm
from dp.contracts.evaluation import Evaluation
from dp.contracts.fedavg import FedAvg
from dp.contracts.fedbuff import FedBuff
from dp.contracts.federated_sum import FederatedSum
from dp.contracts.fednova import FedNova
from dp.contracts.fedopt import FedOpt
from dp.contracts.fedprox import FedProx
from dp.contracts.fedsgd import FedSGD
from dp.contracts.optimisers import NAMED_AFTER
from dp.contracts.scaffold import Scaffold
from dp.contracts.zeroth_order import ZerothOrder
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
