"""Quadratic problems with known solutions, on which every algorithm runs through its real halves.

A device holds examples c_i and the loss (1/2) (y - c_i)^T H (y - c_i) of its own H, so an example's
gradient H (y - c_i) and every optimum are known in closed form. Only the model is replaced: the
device's algorithm, the encoding, the masking machines, the decoding and the server's step are the
product's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aggregator.algorithms import Step, server_step
from client_sdk.algorithms import ALGORITHMS
from client_sdk.algorithms.work import Work
from client_sdk.examples import Row
from dp.contracts import BudgetSpec, CohortSpec, TaskSpec, TrainingSpec, build_manifest
from dp.mechanisms import decode, encode
from secagg.adapter import vector_length
from secagg.manifest import Manifest, encode_manifest, manifest_digest
from secagg.ring import Lanes, add_into
from secagg.simulation import Aggregator, Device, Drop, Hooks, LocalDevices, drive, make_task
from secagg.simulation.task import seeded_tools
from tests.dp_tasks import VERIFIER, adapter, seeded

Vector = NDArray[np.float64]
Values = Mapping[str, NDArray[Any]]
PUBLIC_SEED = bytes(32)  # of the rotation, where no cohort gives one


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

    def loss(self, y: Vector, weights: Vector) -> float:
        """The weighted mean of the devices' mean losses."""
        total = 0.0
        for k, weight in enumerate(weights / weights.sum()):
            away = y - self.centres[k]
            total += weight * float(np.einsum("ni,ij,nj->n", away, self.hessians[k], away).mean())
        return total / 2

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

    def __init__(self, start: Vector) -> None:
        self.value = torch.from_numpy(np.array(start, dtype=np.float64))

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


@dataclass(frozen=True)
class QuadraticWork(Work):
    """A round's means whose gradients are the problem's."""

    source: Gradients | None = None

    def gradients(self) -> Any:
        return self.source


class Federation:
    """One task over the devices of a problem; no service counts its releases.

    Args:
        training: terms of ``TrainingSpec``.
        changes: other terms of ``TaskSpec``.
        seed: of every coin.
    """

    def __init__(
        self,
        problem: Problem,
        algorithm: str,
        training: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        survivors_min: int | None = None,
        **changes: Any,
    ) -> None:
        self.problem = problem
        count = problem.devices
        self._task = make_task(count, 1, survivors_min=survivors_min or count)
        terms = {"batch_size": 1_000, "local_steps": 3, "local_learning_rate": 0.1}
        spec = TaskSpec(
            **{
                "task": "conformance",
                "removable_noise": False,  # these devices draw their noise without an exchange
                "algorithm": algorithm,
                "privacy": "none",
                "cohort": CohortSpec(
                    size_min=count, size_max=count, survivors_min=survivors_min or count
                ),
                "budget": BudgetSpec(max_epsilon=None, releases_max=4),
                "training": TrainingSpec(**{**terms, **(training or {})}),
                "adapter": changes.get("adapter") or adapter((problem.length,), 1),
                **changes,
            }
        )
        self.manifest: Manifest = build_manifest(
            spec,
            created_at=self._task.manifest.created_at,
            task_key=self._task.manifest.task_key,
            ledger_verifier=VERIFIER,
            partner_keys=self._task.manifest.partner_keys,
        )
        self.seed = seed
        assert self.manifest.adapter is not None
        self.vector = np.zeros(vector_length(self.manifest.adapter), np.float32)
        self.optimiser: dict[str, Vector] = {}
        self.version = 0
        self.metrics: dict[str, float] = {}

    def coins(self, *label: int) -> Callable[[int], bytes]:
        return seeded(hash((self.seed, self.version, *label)) & 0xFFFFFFFF)

    def work(self, device: int) -> Work:
        """What the device's algorithm is called with in this release."""
        iterate, source = self.model_of(device)
        return QuadraticWork(
            adapted=iterate,
            rows=[Row((i,), (True,)) for i in range(self.problem.examples(device))],
            pad_token=0,
            micro_batch=1 << 20,
            method="loop",
            random_bytes=self.coins(device),
            clock=lambda: 0.0,
            deadline_s=None,
            stopped=lambda: False,
            version=self.version,
            source=source,
        )

    def model_of(self, device: int) -> tuple[Any, Any]:
        """The device's iterate, and where its gradients come from."""
        iterate = Iterate(self.vector)
        return iterate, Gradients(self.problem, device, iterate)

    def contributions(self) -> list[Values]:
        """What every device would send in this release."""
        contribute = ALGORITHMS[self.manifest.algorithm]
        return [contribute(self.manifest, self.work(k)) for k in range(self.problem.devices)]

    def release(self, sums: Mapping[str, Vector], survivors: int) -> Step:
        """The server's step on these sums; the next version is then the present one."""
        step = server_step(
            self.manifest, self.vector, self.optimiser, sums, self.version, survivors
        )
        self.vector, self.optimiser, self.metrics = step.vector, step.optimiser, step.metrics
        self.version += 1
        return step

    def run(self, releases: int, lost: Callable[[int], set[int]] = lambda _: set()) -> Vector:
        """That many releases through the ring, without masks; the last vector."""
        for _ in range(releases):
            values, gone = self.contributions(), lost(self.version)
            present = [v for k, v in enumerate(values) if k not in gone]
            self.release(self.unmasked(present), len(present))
        return self.vector.astype(np.float64)

    # -- three ways to a sum ------------------------------------------------------------------

    def exact(self, values: Sequence[Values]) -> dict[str, Vector]:
        """In plain float64, clipped by nothing and rounded nowhere."""
        return {
            segment.name: np.sum([v[segment.name] for v in values], axis=0).astype(np.float64)
            for segment in self.manifest.segments
        }

    def unmasked(self, values: Sequence[Values]) -> dict[str, Vector]:
        """Encoded, added in the ring, decoded."""
        total: Lanes | None = None
        for number, value in enumerate(values):
            lanes = self._encode(value, number, PUBLIC_SEED)
            if total is None:
                total = lanes
            else:
                add_into(total, lanes, self.manifest.encoding.ring_bits)
        assert total is not None
        return decode(self.manifest, total, survivors=len(values), rotation_seed=PUBLIC_SEED)

    def masked(
        self, values: Sequence[Values], drops: Mapping[int, Drop] | None = None
    ) -> tuple[dict[str, Vector], tuple[int, ...]]:
        """Through both protocol machines, from report-in to the opened sum; and who is in it."""
        task = self._real_task()
        devices: list[Device] = []
        for number, value in enumerate(values):
            devices.append(
                Device(
                    task.devices[number],
                    number,
                    model_digest=task.model_digest,
                    vector=lambda number=number, value=value: self._encode(
                        value, number, devices[number].state.session.ctx
                    ),
                    tools=seeded_tools(self.seed, self.version, number),
                    drop=(drops or {}).get(number, Drop.NEVER),
                )
            )
        pool = LocalDevices(devices)
        aggregator = Keeping(
            task,
            pool.advertise(),
            cohort=self.version.to_bytes(32, "little"),
            attempt=0,
            hooks=Hooks(),
        )
        result = drive(aggregator, pool)
        assert result.total is not None, result.ended
        found = decode(
            self.manifest,
            aggregator.opened,
            survivors=len(result.survivors),
            rotation_seed=aggregator.state.ctx,
        )
        return found, result.survivors

    def _encode(self, value: Values, number: int, rotation_seed: bytes) -> Lanes:
        return encode(
            self.manifest,
            value,
            rotation_seed=rotation_seed,
            random_bytes=self.coins(number, 1),
        )

    def _real_task(self) -> Any:
        digest = manifest_digest(encode_manifest(self.manifest))
        return replace(
            self._task,
            server=replace(self._task.server, manifest=self.manifest, manifest_digest=digest),
            devices=tuple(
                replace(config, manifest=self.manifest, manifest_digest=digest)
                for config in self._task.devices
            ),
        )


class Keeping(Aggregator):
    """The simulator's aggregator, which keeps the opened payload with its check coordinates."""

    @property
    def opened(self) -> Lanes:
        return self._sum
