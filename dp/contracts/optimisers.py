"""Server optimisers: which terms each one has, and what they are where a task names none.

The equations are in ``aggregator.algorithms.optimisers``. The defaults are those of Reddi et al.
2021 (arXiv 2003.00295): beta1 = 0.9 and beta2 = 0.99 (Adagrad has neither), tau = 0.001.
"""

from __future__ import annotations

from collections.abc import Mapping

from dp.contracts.rules import in_range, refuse
from secagg.manifest import ServerOptimiser, Training

NAMED_AFTER: dict[str, ServerOptimiser] = {
    "fedavgm": "momentum",
    "fedadagrad": "adagrad",
    "fedadam": "adam",
    "fedyogi": "yogi",
}
MOMENTUM: Mapping[str, float] = {"momentum": 0.9, "adam": 0.9, "yogi": 0.9}
BETA2: Mapping[str, float] = {"adam": 0.99, "yogi": 0.99}
TAU: Mapping[str, float] = {"adagrad": 1e-3, "adam": 1e-3, "yogi": 1e-3}


def server_optimiser(algorithm: str, named: ServerOptimiser) -> ServerOptimiser:
    """The optimiser of a task that names ``named``, or only an algorithm named after one."""
    return NAMED_AFTER.get(algorithm, named) if named == "sgd" else named


def or_default(value: float | None, optimiser: str, defaults: Mapping[str, float]) -> float:
    return defaults.get(optimiser, 0.0) if value is None else value


def check_server_optimiser(training: Training) -> None:
    """Every term is in its range where the optimiser has it, and 0 where it has not.

    Raises:
        ConfigurationError: ``parameter-out-of-range``, ``momentum-without-optimiser``,
            ``beta2-without-optimiser`` or ``tau-without-optimiser``.
    """
    optimiser = training.server_optimiser
    in_range("server_learning_rate", training.server_learning_rate, 0, 1e6, open_low=True)
    if optimiser == "momentum":
        in_range("server_momentum", training.server_momentum, 0, 0.9999, open_low=True)
    elif optimiser in TAU:
        in_range("server_momentum", training.server_momentum, 0, 0.9999)
    else:
        _absent("server_momentum", training.server_momentum, "momentum", optimiser)
    if optimiser in BETA2:
        in_range("server_beta2", training.server_beta2, 0, 0.999999, open_low=True)
    else:
        _absent("server_beta2", training.server_beta2, "adam", optimiser)
    if optimiser in TAU:
        in_range("server_tau", training.server_tau, 0, 1e6, open_low=True)
    else:
        _absent("server_tau", training.server_tau, "adam", optimiser)


def _absent(name: str, value: float, other: str, optimiser: str) -> None:
    if value != 0:
        refuse(
            f"{name.removeprefix('server_')}-without-optimiser",
            f"The server optimiser {optimiser} has no {name}.",
            expected=f"{name} = 0",
            found=value,
            remedy=f"Leave it out, or set server_optimiser = '{other}'.",
        )
