"""The algorithms in plain float64, written from the papers and from nothing of ours.

Each function takes one release from x: full gradients of the problem, devices by number,
``present`` those that are in the sum, ``p`` their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.kits.problems import Problem

Vector = NDArray[np.float64]


def local(
    problem: Problem,
    device: int,
    x: Vector,
    rate: float,
    steps: int,
    *,
    momentum: float = 0.0,
    mu: float = 0.0,
    adam: bool = False,
) -> Vector:
    """y - x after local steps: SGD, heavy ball, Adam (Kingma and Ba), each with FedProx's pull."""
    y, velocity = x.copy(), np.zeros_like(x)
    first, second = np.zeros_like(x), np.zeros_like(x)
    for t in range(1, steps + 1):
        gradient = problem.gradient(device, y)
        if adam:
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            unbiased = first / (1 - 0.9**t), second / (1 - 0.999**t)
            y = y - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
            continue
        velocity = momentum * velocity + gradient
        y = y - rate * (velocity + mu * (y - x))
    return y - x


@dataclass
class Server:
    """McMahan 2017; Hsu 2019; Reddi et al. 2021, algorithm 2: one rule for x and its moments."""

    kind: str = "sgd"
    rate: float = 1.0
    beta1: float = 0.0
    beta2: float = 0.0
    tau: float = 0.0
    m: Vector | None = field(default=None)
    v: Vector | None = field(default=None)

    def step(self, x: Vector, delta: Vector) -> Vector:
        if self.kind == "sgd":
            return x + self.rate * delta
        if self.m is None:
            self.m, self.v = np.zeros_like(x), np.full_like(x, self.tau**2)
        if self.kind == "momentum":
            self.m = self.beta1 * self.m + delta
            return x + self.rate * self.m
        self.m = self.beta1 * self.m + (1 - self.beta1) * delta
        if self.kind == "adagrad":
            self.v = self.v + delta**2
        elif self.kind == "adam":
            self.v = self.beta2 * self.v + (1 - self.beta2) * delta**2
        else:
            self.v = self.v - (1 - self.beta2) * delta**2 * np.sign(self.v - delta**2)
        return x + self.rate * self.m / (np.sqrt(self.v) + self.tau)


def averaged(
    problem: Problem,
    x: Vector,
    present: Sequence[int],
    p: Vector,
    server: Server,
    update: Callable[[int], Vector],
) -> Vector:
    """x moved by the weighted mean of the devices' changes."""
    weights = p[list(present)] / p[list(present)].sum()
    return server.step(x, sum(w * update(k) for w, k in zip(weights, present, strict=True)))


def nova(
    problem: Problem,
    x: Vector,
    present: Sequence[int],
    p: Vector,
    server: Server,
    update: Callable[[int], Vector],
    norms: Sequence[float],
) -> Vector:
    """Wang et al. 2020, equation 9: sum p_k ||a_k|| times sum p_k (change of k) / ||a_k||."""
    weights = p[list(present)] / p[list(present)].sum()
    pairs = list(zip(weights, present, strict=True))
    effective = sum(w * norms[k] for w, k in pairs)
    return server.step(x, effective * sum(w * update(k) / norms[k] for w, k in pairs))


def scaffold(
    problem: Problem,
    x: Vector,
    c: Vector,
    own: Vector,
    present: Sequence[int],
    rate: float,
    steps: int,
    population: int,
    server_rate: float = 1.0,
) -> tuple[Vector, Vector, Vector]:
    """Karimireddy et al. 2020, algorithm 1, option II: the next x, c and all c_k (one per row)."""
    moved, changes, after = [], [], own.copy()
    for k in present:
        y = x.copy()
        for _ in range(steps):
            y = y - rate * (problem.gradient(k, y) - own[k] + c)
        after[k] = own[k] - c + (x - y) / (steps * rate)
        moved.append(y - x)
        changes.append(after[k] - own[k])
    x = x + server_rate * np.mean(moved, axis=0)
    return x, c + len(present) / population * np.mean(changes, axis=0), after


def buffer(
    models: Sequence[Vector],
    begun: Sequence[int],
    present: Sequence[int],
    server: Server,
    update: Callable[[int, Vector], Vector],
) -> Vector:
    """Nguyen et al. 2022, algorithm 1: the model after a buffer of the devices that are present.

    ``models``: all versions, the present one last; ``begun``: each device's version.
    """
    now = len(models) - 1
    found = [update(k, models[begun[k]]) / np.sqrt(1 + now - begun[k]) for k in present]
    return server.step(models[-1], np.sum(found, axis=0) / len(present))


def clipped(vectors: Vector, bound: float) -> Vector:
    """Each row cut to that L2 norm, as DP-SGD (Abadi et al. 2016, algorithm 1) writes it."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(1.0, norms / bound)


def descended(
    problem: Problem,
    x: Vector,
    present: Sequence[int],
    rate: float,
    clip: float,
    denominator: float,
) -> Vector:
    """FedSGD with clipped examples: one step along their sum over a public number."""
    total = sum(clipped(problem.gradients(k, x), clip).sum(0) for k in present)
    return x - rate * total / denominator


def slopes(
    problem: Problem, device: int, x: Vector, directions: Vector, perturbation: float
) -> Vector:
    """Spall 1992; Malladi et al. 2023, definition 1: float64[examples, K]."""
    step = perturbation * directions
    return np.array(
        [
            (problem.losses(device, x + z) - problem.losses(device, x - z)) / (2 * perturbation)
            for z in step
        ]
    ).T
