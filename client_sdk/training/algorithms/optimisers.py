"""Local optimisers: from gradients to the steps of one device, begun anew in every release.

``sgd``: the gradient, or with momentum v <- rho v + g. ``adam``: Kingma and Ba 2015, algorithm 1,
with b1 = 0.9, b2 = 0.999, epsilon = 1e-8. All of them see gradients after clip and noise, so their
state is post-processing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secagg.manifest import Training

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class LocalOptimiser:
    """Called with one gradient per step, float64[d]; gives the direction to descend."""

    def __init__(self, training: Training, length: int) -> None:
        self._training = training
        self._steps = 0
        self._first = torch.zeros(length, dtype=torch.float64)
        self._second = torch.zeros(length, dtype=torch.float64)

    def __call__(self, gradient: Tensor) -> Tensor:
        self._steps += 1
        if self._training.local_optimiser == "adam":
            return self._adam(gradient)
        self._first = self._training.local_momentum * self._first + gradient
        return self._first

    def _adam(self, gradient: Tensor) -> Tensor:
        self._first = _BETA1 * self._first + (1 - _BETA1) * gradient
        self._second = _BETA2 * self._second + (1 - _BETA2) * gradient**2
        first = self._first / (1 - _BETA1**self._steps)
        second = self._second / (1 - _BETA2**self._steps)
        return first / (second.sqrt() + _EPSILON)
