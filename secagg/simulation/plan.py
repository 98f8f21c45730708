"""What one simulation is a function of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from secagg import ring
from secagg.simulation.devices import Delivery, Device, Drop, LocalDevices, Output
from secagg.simulation.task import SeededBytes, SimulatedTask, make_task, seeded_tools


def lost(clients: int, dropout: float) -> int:
    """Devices that each round loses."""
    return int(dropout * clients)


class Plan(msgspec.Struct, frozen=True):
    """Everything that a simulation is a function of; ``seed`` replays it.

    ``corrupt``: devices that the threshold assumes to be corrupt; none of the simulated ones is.
    ``degree``, ``threshold``: of a sparse graph; 0: complete.
    """

    clients: int
    length: int
    dropout: float
    seed: int
    bits: int
    corrupt: int
    degree: int
    threshold: int

    def task(self) -> SimulatedTask:
        return make_task(
            self.clients,
            self.length,
            seed=self.seed,
            ring_bits=self.bits,
            survivors_min=max(2, self.clients - lost(self.clients, self.dropout)),
            corrupt_max=self.corrupt,
            degree=self.degree,
            threshold=self.threshold,
        )

    def vector(self, round_number: int, number: int) -> npt.NDArray[np.int64]:
        """A device's input: uniform in the ring, so that any error shows in every coordinate."""
        drawn = SeededBytes(self.seed, "vector", round_number, number)(8 * self.length)
        lanes = np.frombuffer(drawn, "<u8") >> np.uint64(64 - self.bits)
        return lanes.astype(np.int64) - np.int64(1 << (self.bits - 1))

    def drops(self, round_number: int) -> dict[int, Drop]:
        """floor(dropout * clients) devices, each lost at a step of its own."""
        random = SeededBytes(self.seed, "drops", round_number)
        order = list(range(self.clients))
        for place in range(self.clients - 1, 0, -1):
            other = random.below(place + 1)
            order[place], order[other] = order[other], order[place]
        gone = order[: lost(self.clients, self.dropout)]
        return {number: Drop(random.below(int(Drop.NEVER))) for number in sorted(gone)}

    def devices(
        self, task: SimulatedTask, round_number: int, numbers: Iterable[int]
    ) -> LocalDevices:
        """The devices of one round with these enrolment numbers."""
        drops = self.drops(round_number)
        encoding = task.manifest.encoding

        def payload(number: int) -> Callable[[], ring.Lanes]:
            return lambda: ring.with_checks(
                self.vector(round_number, number), encoding.ring_bits, encoding.slice_length
            )

        return LocalDevices(
            Device(
                task.devices[number],
                number,
                model_digest=task.model_digest,
                vector=payload(number),
                tools=seeded_tools(self.seed, round_number, number),
                drop=drops.get(number, Drop.NEVER),
            )
            for number in numbers
        )


class LocalRounds:
    """The devices of one round after another, in this process."""

    def __init__(self, plan: Plan, task: SimulatedTask) -> None:
        self._plan = plan
        self._task = task
        self._devices = LocalDevices(())

    def advertise(self, round_number: int) -> Sequence[bytes]:
        self._devices = self._plan.devices(self._task, round_number, range(self._plan.clients))
        return self._devices.advertise()

    def deliver(self, deliveries: Iterable[Delivery]) -> Iterable[Output]:
        return self._devices.deliver(deliveries)

    def close(self) -> None:
        """Nothing to release."""
