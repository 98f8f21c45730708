"""A fleet of devices, each behind a bad network of its own: how it ends, when, and what it sent.

An app would run a device again whose network failed it; so does this. A device ends released, or
cleanly out: with an error of the SDK's own after which a later run would go on.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from client_sdk import TransportSettings
from client_sdk.contribution import TrainingJob
from client_sdk.errors import Unreached
from dp.contracts import BudgetSpec, CohortSpec, DeadlineSpec, SegmentSpec, TaskSpec
from dp.transfer_sizes import upload_size
from secagg.errors import SecaggError
from tests.kits.fault_proxy import FaultProxy, Schedule, faulty
from tests.kits.world import TASK, World, plain_spec

DEVICES = 3
Schedules = Callable[[int], Schedule]
"""Of each device by its number, its network's faults."""


@dataclass(frozen=True)
class Pace:
    """Times in seconds: of the devices' requests, of a cohort's steps, and of a whole run."""

    transport: TransportSettings
    step_s: float
    run_s: float
    bytes_per_s: float = 1000.0
    delay_s: float = 3.0


REPORTED = Pace(TransportSettings(), step_s=25.0, run_s=150.0)
QUICK = Pace(
    TransportSettings(
        patience_s=10.0,
        request_s=12.0,
        transfer_s=5.0,
        poll_s=2.0,
        backoff_first_s=0.01,
        backoff_max_s=0.2,
        jitter_s=0.01,
    ),
    step_s=12.0,
    run_s=60.0,
    bytes_per_s=100_000.0,
    delay_s=0.2,
)
HASTY = replace(QUICK, transport=replace(QUICK.transport, request_s=2.0, poll_s=1.0))


@dataclass
class Ended:
    """How a fleet's run ended.

    ``ends``: of each device ``released``, the reason of the error that it ended with, or ``hung``.
    ``vector_bytes``: what all vectors that were released take once. ``sent_bytes``: of vectors,
    as the networks took it from the devices; ``up_bytes``: of everything, with heads.
    """

    ends: tuple[str, ...]
    seconds: float
    vector_bytes: int
    sent_bytes: int
    up_bytes: int
    cohorts: int
    met: Mapping[str, int] = field(default_factory=dict)

    @property
    def sent_again(self) -> float:
        """Part of the vectors that was sent more than once."""
        return self.sent_bytes / self.vector_bytes - 1 if self.vector_bytes else 0.0


class Ones:
    """Contributes the same small number everywhere."""

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        (segment,) = job.manifest.segments
        return {segment.name: np.full(segment.length, 1e-3)}


def vector_spec(length: int, step_s: float, devices: int = DEVICES) -> TaskSpec:
    """The sum of a vector over so few devices that each is needed."""
    steps = {f"{step}_s": step_s for step in ("share", "check", "confirm", "unmask")}
    return plain_spec(
        segments=(SegmentSpec(name="v", length=length, clip=10.0),),
        cohort=CohortSpec(size_min=devices, size_max=devices, survivors_min=devices, corrupt_max=0),
        deadlines=DeadlineSpec(report_s=60.0, masked_input_s=1.6 * step_s, **steps),
        budget=BudgetSpec(max_epsilon=None, releases_max=400),
    )


async def run_fleet(
    folder: Path, schedules: Schedules, pace: Pace = QUICK, *, length: int = 100_000
) -> Ended:
    """One release of ``DEVICES`` devices over these networks; ``length``: of the vector."""
    async with World(folder, vector_spec(length, pace.step_s)) as world, AsyncExitStack() as stack:
        networks: list[FaultProxy] = []
        for number in range(DEVICES):
            proxy = await stack.enter_async_context(
                faulty(
                    ("127.0.0.1", world.port),
                    schedules(number),
                    bytes_per_s=pace.bytes_per_s,
                    delay_s=pace.delay_s,
                )
            )
            world.reroute(f"d{number}", proxy.port)
            networks.append(proxy)
        begun_s = time.monotonic()
        fleet = [asyncio.create_task(_until_released(world, n, pace)) for n in range(DEVICES)]
        done, hung = await asyncio.wait(fleet, timeout=pace.run_s)
        seconds = time.monotonic() - begun_s
        for task in hung:
            task.cancel()
        await asyncio.gather(*fleet, return_exceptions=True)
        ends = tuple(task.result() if task in done else "hung" for task in fleet)
        return Ended(
            ends,
            seconds,
            upload_size(world.manifest()) * ends.count("released"),
            sum(network.vector for network in networks),
            sum(network.up for network in networks),
            len((await world.view())["releases"]),
            sum((network.met for network in networks), Counter()),
        )


async def _until_released(world: World, number: int, pace: Pace) -> str:
    while True:
        device = world.device(f"d{number}", transport=pace.transport)
        try:
            result = await device.run_async(Ones(), task=TASK, rounds=1)
        except Unreached as error:
            if error.reason.startswith("tls"):
                return error.reason
        except SecaggError as error:
            return error.reason
        else:
            return "released" if result.releases else "finished"
