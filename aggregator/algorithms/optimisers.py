"""Server optimisers: what becomes of the mean of a release, seen as a (negative) gradient.

Plain steps; heavy-ball momentum (FedAvgM; Hsu et al., arXiv 1909.06335); Adagrad, Adam and Yogi as
in Reddi et al. 2021 (arXiv 2003.00295, algorithm 2), without bias correction and with v = tau^2
before the first release:

    m <- b1 m + (1 - b1) D
    v <- v + D^2                               (Adagrad)
    v <- b2 v + (1 - b2) D^2                   (Adam)
    v <- v - (1 - b2) D^2 sign(v - D^2)        (Yogi)
    x <- x + eta m / (sqrt(v) + tau)

**Known noise.** Noise of variance s^2 in D makes E[D^2] larger by s^2, so v holds noise too, and
where there is little signal every coordinate gets the same small step (Tang, Shpilevskiy, Lecuyer,
arXiv 2312.14334). Its share n is kept as state by v's own recursion, from 0 and with s^2 for D^2,
and the step is eta m / (sqrt(max(v - n, tau^2)) + tau). For Adagrad and Adam n is the expectation
of the noise in v. Yogi's v does not tend to a mean (under noise alone to 2.37 s^2, while n tends to
s^2), so there the correction is partial, never too large. Only noise shares in the ring are known
in this way; DP-SGD's noise on a device lies inside an update that is clipped afterwards.

The state is part of the task: it is stored with the version that it belongs to and changes only
together with a release.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigurationError
from secagg.manifest import Training

Float64: TypeAlias = NDArray[np.float64]
OptimiserState: TypeAlias = dict[str, Float64]


def _adagrad(second: Float64, square: Float64, beta2: float) -> Float64:
    return second + square


def _adam(second: Float64, square: Float64, beta2: float) -> Float64:
    return beta2 * second + (1 - beta2) * square


def _yogi(second: Float64, square: Float64, beta2: float) -> Float64:
    return second - (1 - beta2) * square * np.sign(second - square)


_SECOND: dict[str, Callable[[Float64, Float64, float], Float64]] = {
    "adagrad": _adagrad,
    "adam": _adam,
    "yogi": _yogi,
}


def is_adaptive(training: Training) -> bool:
    """Whether the optimiser has a second moment, which noise goes into."""
    return training.server_optimiser in _SECOND


def apply(
    training: Training,
    vector: Float64,
    state: OptimiserState,
    direction: Float64,
    variance: float = 0.0,
) -> tuple[Float64, OptimiserState]:
    """The next vector and the next state; float64[d] each.

    Args:
        direction: D, the way the release points.
        variance: of the noise in each coordinate of ``direction``, as far as it is known.

    Raises:
        ConfigurationError: ``optimiser-unknown``: a word that is not there must not become
            another optimiser without a word.
    """
    optimiser, rate = training.server_optimiser, training.server_learning_rate
    if optimiser == "sgd":
        return vector + rate * direction, {}
    first = state.get("momentum", np.zeros_like(direction))
    if optimiser == "momentum":
        first = training.server_momentum * first + direction
        return vector + rate * first, {"momentum": first}
    recursion = _SECOND.get(optimiser)
    if recursion is None:
        raise ConfigurationError(
            "optimiser-unknown",
            "This aggregator has no such server optimiser.",
            expected=["sgd", "momentum", *_SECOND],
            found=optimiser,
        )
    beta1, beta2, tau = training.server_momentum, training.server_beta2, training.server_tau
    second = state.get("second", np.full_like(direction, tau**2))
    noise = state.get("noise", np.zeros(1))
    first = beta1 * first + (1 - beta1) * direction
    second = recursion(second, direction**2, beta2)
    noise = recursion(noise, np.array([variance]), beta2)
    kept = np.maximum(second - noise, tau**2) if noise[0] > 0 else second
    moved = vector + rate * first / (np.sqrt(kept) + tau)
    return moved, {"momentum": first, "second": second, "noise": noise}
