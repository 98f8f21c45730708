"""Devices whose losses are quadratics with different curvatures and minima, in numpy alone.

Device k's loss is 1/2 sum over i of a_ki (y_i - b_ki)^2, so everything has a closed form: the
minimum of the mean loss is sum(a b) / sum(a), and FedAvg with K > 1 local steps ends elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from client_sdk.contribution import TrainingJob
from dp.contracts import BudgetSpec, CohortSpec, DeadlineSpec, TaskSpec, TrainingSpec
from secagg.manifest import Adapter, BaseModel, TensorShape

LENGTH = 6
STEPS, RATE = 8, 0.1
CURVATURES = np.array(
    [
        [4.0, 1.0, 0.5, 2.0, 1.0, 3.0],
        [0.5, 3.0, 4.0, 1.0, 2.0, 1.0],
        [1.0, 0.5, 2.0, 4.0, 0.5, 2.0],
        [2.0, 2.0, 1.0, 0.5, 4.0, 0.5],
    ]
)
MINIMA = np.array(
    [
        [1.0, -2.0, 3.0, 0.0, 2.0, -1.0],
        [-3.0, 1.0, 0.0, 2.0, -1.0, 2.0],
        [2.0, 3.0, -1.0, -2.0, 0.5, 1.0],
        [0.0, -1.0, 2.0, 3.0, -2.0, -3.0],
    ]
)
OPTIMUM = (CURVATURES * MINIMA).sum(0) / CURVATURES.sum(0)


def fixed_point_of_fedavg() -> np.ndarray:
    """Where the mean of the devices' K-step changes vanishes: minima weighted by 1-(1-eta a)^K."""
    pull = 1 - (1 - RATE * CURVATURES) ** STEPS
    return (pull * MINIMA).sum(0) / pull.sum(0)


ADAPTER = Adapter(
    kind="ffa-lora",
    rank=2,
    alpha=4,
    target_modules=("q_proj",),
    seed=bytes(32),
    trainable=(TensorShape(name="q.lora_B", rows=LENGTH // 2, columns=2),),
    frozen=(TensorShape(name="q.lora_A", rows=2, columns=3),),
)


def quadratic_spec(
    algorithm: str, devices: int = 4, survivors: int = 3, *, task: str = "stats", **changes: Any
) -> TaskSpec:
    """A task over the quadratics; ``training`` changes single terms of its training."""
    training = {
        "local_steps": STEPS,
        "local_learning_rate": RATE,
        "population": devices if algorithm == "scaffold" else 0,
        **changes.pop("training", {}),
    }
    fields: dict[str, Any] = {
        "task": task,
        "algorithm": algorithm,
        "privacy": "none",
        "cohort": CohortSpec(
            size_min=devices, size_max=devices, survivors_min=survivors, corrupt_max=0
        ),
        "deadlines": DeadlineSpec(report_s=60.0),
        "budget": BudgetSpec(max_epsilon=None, releases_max=400),
        "training": TrainingSpec(**training),
        "base_model": BaseModel(name="quadratic", fingerprint=bytes(32)),
        "adapter": ADAPTER,
    }
    return TaskSpec(**{**fields, **changes})


def local_spec(algorithm: str = "fedavg", **changes: Any) -> TaskSpec:
    """As :func:`quadratic_spec`, local: each device adds its own noise, none is in the ring."""
    fields = {
        "privacy": "local",
        "noise_multiplier": 10.0,
        "budget": BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=4),
    }
    return quadratic_spec(algorithm, **{**fields, **changes})


class Quadratic:
    """A contributor: K exact gradient steps on the loss of device ``number``.

    It says that it adds local noise and adds none, so that a repeated vector would show.
    """

    adds_local_noise = True

    def __init__(self, number: int) -> None:
        self.number = number
        self.jobs: list[TrainingJob] = []

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        self.jobs.append(job)
        training = job.manifest.training
        assert training is not None
        a, b = CURVATURES[self.number], MINIMA[self.number]
        correction = 0.0 if job.correction is None else job.correction
        y = x = job.vector.astype(np.float64)
        loss = 0.5 * float(a @ (x - b) ** 2)
        for _ in range(training.local_steps):
            y = y - training.local_learning_rate * (a * (y - b) + correction)
        values = {"delta": y - x, "weight": np.ones(1), "loss": np.array([loss])}
        return {segment.name: values[segment.name] for segment in job.manifest.segments}
