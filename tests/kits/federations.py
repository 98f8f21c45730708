"""Tasks over the problems of ``tests.kits.problems``, run through every real half.

Only the model is replaced: the device's algorithm, the encoding, the masking machines, the decoding
and the server's step are the product's own. ``tests.kits.stateful`` has the algorithms that
carry more from one release to the next than the model and the server's moments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from aggregator.algorithms import Step, StepInput, server_step
from aggregator.store.models import vector_length
from client_sdk.training.algorithms import ALGORITHMS
from client_sdk.training.algorithms.work import Work
from dp.contracts import BudgetSpec, CohortSpec, TaskSpec, TrainingSpec, build_manifest
from dp.encoding import decode, encode
from secagg.client.states import Exchange
from secagg.manifest import Manifest, encode_manifest, manifest_digest
from secagg.ring import Lanes, add_into
from secagg.simulation import Aggregator, Device, Drop, Hooks, LocalDevices, drive, make_task
from secagg.simulation.task import seeded_tools
from tests.kits.problems import Gradients, Iterate, Problem, row_of
from tests.kits.tasks import VERIFIER, adapter, seeded

Vector = NDArray[np.float64]
Values = Mapping[str, NDArray[Any]]


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
                    size_min=count,
                    size_max=count,
                    survivors_min=survivors_min or count,
                    corrupt_max=0,
                ),
                "budget": BudgetSpec(max_epsilon=None, releases_max=4),
                "training": TrainingSpec(**{**terms, **(training or {})}),
                "adapter": changes.get("adapter") or adapter((problem.length,), 1),
                **changes,
            }
        )
        if algorithm == "sum":
            spec = msgspec.structs.replace(spec, adapter=None)
        self.manifest: Manifest = build_manifest(
            spec,
            created_at=self._task.manifest.created_at,
            task_key=self._task.manifest.task_key,
            ledger_verifier=VERIFIER,
            partner_keys=self._task.manifest.partner_keys,
        )
        self.seed = seed
        self.vector = np.zeros(vector_length(self.manifest), np.float32)
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
            rows=[row_of(i) for i in range(self.problem.examples(device))],
            pad_token=0,
            micro_batch=1 << 20,
            method="hooks",
            random_bytes=self.coins(device),
            clock=lambda: 0.0,
            deadline_s=None,
            stopped=lambda: False,
            version=self.version_of(device),
            correction=self.correction(device),
            source=source,
        )

    def version_of(self, device: int) -> int:
        """The version that the device trains on."""
        return self.version

    def vector_of(self, device: int) -> NDArray[np.float32]:
        """The model of that version."""
        return self.vector

    def correction(self, device: int) -> Vector | None:
        """What the device's state adds to its gradients."""
        return None

    def model_of(self, device: int) -> tuple[Any, Any]:
        """The device's iterate, and where its gradients come from."""
        iterate = Iterate(self.problem, device, self.vector_of(device))
        return iterate, Gradients(self.problem, device, iterate)

    def contributions(self) -> list[Values]:
        """What every device would send in this release."""
        contribute = ALGORITHMS[self.manifest.algorithm]
        return [contribute(self.manifest, self.work(k)) for k in range(self.problem.devices)]

    def release(self, sums: Mapping[str, Vector], survivors: int, lag: int = 0) -> Step:
        """The server's step on these sums; the next version is then the present one."""
        step = server_step(
            StepInput(
                self.manifest, self.vector, self.optimiser, sums, self.version, survivors, lag=lag
            )
        )
        self.vector, self.optimiser, self.metrics = step.vector, step.optimiser, step.metrics
        self.version += 1
        return step

    def run(self, releases: int, lost: Callable[[int], set[int]] = lambda _: set()) -> Vector:
        """That many releases through the ring, without masks; the last vector."""
        for _ in range(releases):
            values, gone = self.contributions(), lost(self.version)
            present = [k for k in range(len(values)) if k not in gone]
            sums = self.unmasked([values[k] for k in present], present)
            self.release(sums, len(present))
        return self.vector.astype(np.float64)

    # -- three ways to a sum ------------------------------------------------------------------

    def exact(self, values: Sequence[Values]) -> dict[str, Vector]:
        """In plain float64, clipped by nothing and rounded nowhere."""
        return {
            segment.name: np.sum([v[segment.name] for v in values], axis=0).astype(np.float64)
            for segment in self.manifest.segments
        }

    def unmasked(self, values: Sequence[Values], numbers: Sequence[int] = ()) -> dict[str, Vector]:
        """Encoded, added in the ring, decoded; those at ``numbers``, or all."""
        total: Lanes | None = None
        seed = self.version.to_bytes(32, "little")  # of the rotation: no cohort gives one
        for number, value in zip(numbers or range(len(values)), values, strict=True):
            lanes = self.encoded(value, number, seed)
            if total is None:
                total = lanes
            else:
                add_into(total, lanes, self.manifest.encoding.ring_bits)
        assert total is not None
        return decode(self.manifest, total, survivors=len(values), rotation_seed=seed)

    def masked(
        self, values: Sequence[Values], drops: Mapping[int, Drop] | None = None
    ) -> tuple[dict[str, Vector], tuple[int, ...]]:
        """Through both protocol machines, from report-in to the opened sum; and who is in it."""
        task = self._real_task()
        devices: list[Device] = []
        for number, value in enumerate(values):
            version, digest = self.trained_on(number)
            devices.append(
                Device(
                    task.devices[number],
                    number,
                    model_version=version,
                    model_digest=digest,
                    vector=lambda number=number, value=value: self.answer(
                        value, number, devices[number].state.session
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

    def trained_on(self, device: int) -> tuple[int, bytes]:
        """(version, digest) of the device's model, as it advertises them."""
        version = self.version_of(device)
        return version, hashlib.sha256(b"model %d" % version).digest()

    def answer(self, value: Values, number: int, session: Exchange) -> Lanes:
        """The payload that a device gives when its machine asks for it."""
        return self.encoded(value, number, session.ctx)

    def encoded(self, value: Values, number: int, rotation_seed: bytes) -> Lanes:
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
