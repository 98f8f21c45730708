"""Quadratic problems with known solutions, and a model of one number per loss.

A device holds examples c_i and the loss (1/2) (y - c_i)^T H (y - c_i) of its own H, so an example's
gradient H (y - c_i) and every optimum are known in closed form. Where an algorithm asks a model for
its losses instead, :class:`LossModel` answers with logits whose cross entropy is that number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client_sdk.training.examples import Row

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """``hessians``: float64[devices, d, d]. ``centres``: per device float64[examples, d]."""

    hessians: Vector
    centres: tuple[Vector, ...]

    @property
    def length(self) -> int:
        return self.hessians.shape[1]

    @property
    def devices(self) -> int:
        return len(self.centres)

    def examples(self, device: int) -> int:
        return len(self.centres[device])

    def gradient(self, device: int, y: Vector) -> Vector:
        """Of the device's mean loss."""
        return self.hessians[device] @ (y - self.centres[device].mean(0))

    def losses(self, device: int, y: Vector) -> Vector:
        """Of each of the device's examples, float64[examples]."""
        away = y - self.centres[device]
        return np.einsum("ni,ij,nj->n", away, self.hessians[device], away) / 2

    def gradients(self, device: int, y: Vector) -> Vector:
        """Of each of the device's examples, float64[examples, d]."""
        return (y - self.centres[device]) @ self.hessians[device]

    def loss(self, y: Vector, weights: Vector) -> float:
        """The weighted mean of the devices' mean losses."""
        means = [self.losses(k, y).mean() for k in range(self.devices)]
        return float(np.average(means, weights=weights))

    def optimum(self, weights: Vector) -> Vector:
        """Where the weighted mean loss is least."""
        return balance(weights[:, None, None] * self.hessians, self.centres)


def balance(matrices: Vector, centres: Sequence[Vector]) -> Vector:
    """x with sum_k M_k (x - mean c_k) = 0."""
    pulled = sum(m @ c.mean(0) for m, c in zip(matrices, centres, strict=True))
    return np.linalg.solve(matrices.sum(0), pulled)


def problem(
    examples: Sequence[int],
    *,
    length: int = 6,
    seed: int = 0,
    stiffness: tuple[float, float] = (0.5, 1.5),
    same: bool = False,
) -> Problem:
    """One device per entry of ``examples``, its curvature between the ends of ``stiffness``.

    ``same``: all examples of a device are equal, so that a batch is as good as all of them.
    """
    generator = np.random.default_rng(seed)
    hessians, centres = [], []
    for count in examples:
        q, _ = np.linalg.qr(generator.normal(size=(length, length)))
        hessians.append(q @ np.diag(generator.uniform(*stiffness, size=length)) @ q.T)
        middle = generator.normal(size=length)
        spread = 0.0 if same else 0.3
        centres.append(middle + spread * generator.normal(size=(count, length)))
    return Problem(np.array(hessians), tuple(centres))


class Iterate:
    """What ``AdaptedModel`` is to an algorithm: y, and how to move it."""

    mixture = False

    def __init__(self, problem: Problem, device: int, start: Vector) -> None:
        self.value = torch.from_numpy(np.array(start, dtype=np.float64))
        self.model = LossModel(problem, device, self)

    @property
    def length(self) -> int:
        return len(self.value)

    def flat(self) -> Tensor:
        return self.value.clone()

    def add(self, change: Tensor) -> None:
        self.value = self.value + change

    def put(self, values: Tensor) -> None:
        self.value = values.clone()


class Gradients:
    """What ``ExampleGradients`` is to an algorithm, for one device of a problem."""

    def __init__(self, problem: Problem, device: int, iterate: Iterate) -> None:
        self._hessian = torch.from_numpy(problem.hessians[device])
        self._centres = torch.from_numpy(problem.centres[device])
        self._iterate = iterate

    def __enter__(self) -> Gradients:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, rows: Sequence[Row]) -> Tensor:
        away = self._iterate.value - self._centres[[row.tokens[0] for row in rows]]
        self._found = away @ self._hessian
        return (self._found * away).sum(1) / 2

    def flat(self) -> Tensor:
        return self._found


class LossModel(nn.Module):
    """A language model over two tokens: an example's answer, token 0, has the example's loss.

    Logits (0, a) give token 0 the cross entropy log(1 + e^a), so a = log(e^loss - 1); it is the
    likelier token where the loss is below log 2.
    """

    def __init__(self, problem: Problem, device: int, iterate: Iterate) -> None:
        super().__init__()
        self.only_here = nn.Parameter(torch.zeros(()))  # tells where the model is
        self._gradients = Gradients(problem, device, iterate)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: object) -> Logits:
        losses = self._gradients.run([row_of(int(number)) for number in input_ids[:, 0]])
        logits = torch.zeros((*input_ids.shape, 2), dtype=torch.float64)
        logits[:, 0, 1] = torch.log(torch.expm1(losses))
        return Logits(logits)


@dataclass(frozen=True)
class Logits:
    logits: Tensor


def row_of(number: int) -> Row:
    """Example ``number``: a prompt of one token, and token 0 as the answer."""
    return Row((number, 0), (False, True), index=number)
