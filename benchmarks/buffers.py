"""FedBuff against synchronous rounds on a simulated clock, with half-normal training times.

    python -m benchmarks.buffers

The choice of cohorts, the weights, the encoding, the sum in the ring and the server step are the
real ones; masks and HTTP are left out, since they change no sum. A device's loss is
1/2 |y - b_k|^2 with its own b_k and noisy gradients; training takes |N(0, 1)| units of time, drawn
anew each time (half-normal durations, as FLSim, Meta's simulator of FedBuff, offers). Counted are
device updates in released sums, updates that were thrown away, and time, until the mean loss is
within ``TARGET`` of its range.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import nacl.signing
import numpy as np
from numpy.typing import NDArray

from aggregator.algorithms import StepInput, server_step
from aggregator.cohorts.choosing import WaitingDevice, choose
from client_sdk.payload import weighed
from dp.contracts import BudgetSpec, CohortSpec, TaskSpec, TrainingSpec, build_manifest
from dp.encoding import decode, encode
from dp.tlog.notes import verifier_key
from secagg.manifest import Adapter, BaseModel, Manifest, TensorShape
from secagg.ring import add_into

LENGTH, STEPS, RATE = 16, 4, 0.05
SPREAD, GRADIENT_NOISE, START = 1.0, 4.0, 6.0
TARGET = 0.02
BUFFER, MODEL_MIN, VERSIONS_BACK = 10, 2, 16
RELEASES_MAX = 2_000


@dataclass
class Outcome:
    """``reached``: whether the target was. ``gaps``: simulated time between releases."""

    releases: int = 0
    updates: int = 0
    wasted: int = 0
    time: float = 0.0
    reached: bool = False
    stale: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


@dataclass
class _Device:
    minimum: NDArray[np.float64]
    version: int = 0
    delta: NDArray[np.float64] = field(default_factory=lambda: np.zeros(LENGTH))


def manifest_of(algorithm: str, cohort: CohortSpec) -> Manifest:
    """A task without noise over ``LENGTH`` numbers."""
    key = bytes(nacl.signing.SigningKey(bytes(32)).verify_key)
    spec = TaskSpec(
        task="buffers",
        algorithm=algorithm,
        privacy="none",
        cohort=cohort,
        budget=BudgetSpec(max_epsilon=None, releases_max=RELEASES_MAX),
        training=TrainingSpec(local_steps=STEPS, local_learning_rate=RATE),
        base_model=BaseModel(name="quadratic", fingerprint=bytes(32)),
        adapter=Adapter(
            kind="ffa-lora",
            rank=1,
            alpha=1,
            target_modules=("q_proj",),
            seed=bytes(32),
            trainable=(TensorShape(name="q.lora_B", rows=LENGTH, columns=1),),
            frozen=(TensorShape(name="q.lora_A", rows=1, columns=1),),
        ),
    )
    return build_manifest(
        spec,
        created_at=0,
        task_key=key,
        ledger_verifier=verifier_key("buffers", key),
        partner_keys=(key,),
    )


class Federation:
    """Devices that train all the time, and a server that releases whenever a cohort is ready.

    Args:
        size: devices of a cohort; that of all devices makes synchronous rounds of everybody.
        slow: how many devices never finish.
    """

    def __init__(
        self, algorithm: str, devices: int, size: int, seed: int, *, slow: int = 0
    ) -> None:
        buffered = algorithm == "fedbuff"
        self.manifest = manifest_of(
            algorithm,
            CohortSpec(
                size_min=size,
                size_max=size,
                survivors_min=size // 2 + 1,
                corrupt_max=0,
                versions_back=VERSIONS_BACK if buffered else 0,
                model_min=MODEL_MIN if buffered else 0,
            ),
        )
        problem, self._draws = np.random.default_rng(99), np.random.default_rng(seed)
        self._devices = [_Device(SPREAD * problem.normal(size=LENGTH)) for _ in range(devices)]
        self._optimum = np.mean([device.minimum for device in self._devices], 0)
        self._slow = slow
        self.vector = (self._optimum + START / np.sqrt(LENGTH)).astype(np.float32)
        self.version, self._now = 0, 0.0
        self._arrivals: list[tuple[float, int]] = []
        self._waiting: list[tuple[float, int]] = []  # in order of arrival
        self.outcome = Outcome()
        self._state: dict[str, NDArray[np.float64]] = {}

    def run(self) -> Outcome:
        """Until the target is reached, or nobody is left who could finish."""
        for number in range(len(self._devices)):
            self._begin(number)
        start, last = self._gap(), 0.0
        while self._arrivals and self.outcome.releases < RELEASES_MAX:
            self._now, number = heapq.heappop(self._arrivals)
            if self._too_old(number):
                self.outcome.wasted += 1
                self._begin(number)
                continue
            self._waiting.append((self._now, number))
            chosen = self._choose()
            if not chosen:
                continue
            self._release(chosen)
            self.outcome.gaps.append(self._now - last)
            self.outcome.time = last = self._now
            if self._gap() <= TARGET * start:
                self.outcome.reached = True
                break
        return self.outcome

    def _gap(self) -> float:
        """Mean loss above its minimum."""
        return 0.5 * float(np.sum((self.vector - self._optimum) ** 2))

    def _begin(self, number: int) -> None:
        """Train from the present model; the result is there after |N(0, 1)|."""
        device = self._devices[number]
        x = y = self.vector.astype(np.float64)
        for _ in range(STEPS):
            noise = GRADIENT_NOISE * self._draws.normal(size=LENGTH)
            y = y - RATE * (y - device.minimum + noise)
        device.version, device.delta = self.version, y - x
        took = abs(float(self._draws.normal()))
        if number >= self._slow:
            heapq.heappush(self._arrivals, (self._now + took, number))

    def _too_old(self, number: int) -> bool:
        oldest = self.version - self.manifest.cohort.versions_back
        return self._devices[number].version < oldest

    def _choose(self) -> list[int]:
        ready = [
            WaitingDevice(str(number), b"", self._devices[number].version, arrived)
            for arrived, number in self._waiting
        ]
        return [int(chosen.session) for chosen in choose(ready, self.manifest.cohort)]

    def _release(self, chosen: list[int]) -> None:
        newest = max(self._devices[number].version for number in chosen)
        total, ctx = None, self.version.to_bytes(32, "little")
        for number in chosen:
            device = self._devices[number]
            self.outcome.stale.append(self.version - device.version)
            values = {"delta": device.delta, "weight": np.ones(1), "loss": np.zeros(1)}
            values = {s.name: values[s.name] for s in self.manifest.segments}
            if self.manifest.algorithm == "fedbuff":
                values = weighed(self.manifest, values, newest - device.version)
            lanes = encode(self.manifest, values, rotation_seed=ctx, random_bytes=self._draws.bytes)
            if total is None:
                total = lanes
            else:
                add_into(total, lanes, self.manifest.encoding.ring_bits)
        count = len(chosen)
        sums = decode(self.manifest, total, survivors=count, rotation_seed=ctx)
        step = server_step(
            StepInput(
                self.manifest,
                self.vector,
                self._state,
                sums,
                self.version,
                count,
                count,
                self.version - newest,
            )
        )
        self.vector, self._state, self.version = step.vector, step.optimiser, self.version + 1
        self.outcome.releases += 1
        self.outcome.updates += count
        self._waiting = [(at, n) for at, n in self._waiting if n not in set(chosen)]
        for number in chosen:
            self._begin(number)
        old = [number for _, number in self._waiting if self._too_old(number)]
        self._waiting = [(at, n) for at, n in self._waiting if n not in set(old)]
        for number in old:  # what the service tells a device whose version is too old
            self.outcome.wasted += 1
            self._begin(number)


DEVICES = 100
MODES: dict[str, Callable[[int], Federation]] = {
    f"synchronous rounds of all {DEVICES}": lambda seed: Federation(
        "fedavg", DEVICES, DEVICES, seed
    ),
    f"synchronous rounds of the first {BUFFER}": lambda seed: Federation(
        "fedavg", DEVICES, BUFFER, seed
    ),
    f"FedBuff, buffers of {BUFFER}": lambda seed: Federation("fedbuff", DEVICES, BUFFER, seed),
}


def main(seeds: int = 5) -> None:
    """Print the table that docs/algorithms.md shows."""
    print("| | releases | updates | thrown away | time | mean staleness |")
    print("|---|---|---|---|---|---|")
    for name, made in MODES.items():
        found = [made(seed).run() for seed in range(seeds)]
        mean = partial(lambda of, found=found: float(np.mean([of(o) for o in found])))
        print(
            f"| {name} | {mean(lambda o: o.releases):.0f} | {mean(lambda o: o.updates):.0f} "
            f"| {mean(lambda o: o.wasted):.0f} | {mean(lambda o: o.time):.1f} "
            f"| {mean(lambda o: np.mean(o.stale)):.2f} |"
        )


if __name__ == "__main__":
    main()
