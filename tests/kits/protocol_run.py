"""One recorded run of a small cohort: every state and event of both machines."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from functools import cache

import numpy as np

from secagg import client, messages, ring, server
from secagg.keys import signing_key
from secagg.secret import Secret
from secagg.simulation import (
    Aggregator,
    Device,
    Drop,
    Hooks,
    LocalDevices,
    SimulatedTask,
    drive,
    make_task,
    seeded_tools,
)

CLIENTS = 5
LENGTH = 5


class RecordedDevice(Device):
    """A device that keeps (state before, event)."""

    def _drive(self, event):
        self.trace = [*getattr(self, "trace", []), (self.state, event)]
        return super()._drive(event)


class RecordedAggregator(Aggregator):
    """An aggregator that keeps (state before, event)."""

    def _step(self, event, number=-1):
        self.trace = [*getattr(self, "trace", []), (self.state, event)]
        super()._step(event, number)


@dataclass
class Run:
    task: SimulatedTask
    device: RecordedDevice
    aggregator: RecordedAggregator
    client_states: dict[str, client.State]  # by phase
    client_events: dict[str, client.Event]  # by event or message name
    server_states: dict[str, server.State]
    server_events: dict[str, server.Event]  # by event or message name, of the recorded device

    @property
    def index(self) -> int:
        return self.aggregator.index_of[self.device.number]

    def sign(self, message: messages.Message, *, ctx: bytes | None = None) -> bytes:
        """As the aggregator would."""
        bound = self.aggregator.state.ctx if ctx is None else ctx
        return messages.sign(message, bound, signing_key(self.task.server.task_key))

    def sign_as_device(self, message: messages.Message) -> bytes:
        return messages.sign(
            message, self.aggregator.state.ctx, signing_key(self.device.config.identity)
        )

    def tools(self):
        return seeded_tools(7)


def one_hot(clients: int) -> list[np.ndarray]:
    return [np.eye(clients, dtype=np.int64)[number] for number in range(clients)]


def make_recorded(
    task: SimulatedTask, *, drops: dict[int, Drop] | None = None
) -> list[RecordedDevice]:
    encoding = task.manifest.encoding
    return [
        RecordedDevice(
            config,
            number,
            model_digest=task.model_digest,
            vector=lambda vector=vector: ring.with_checks(
                vector, encoding.ring_bits, encoding.slice_length
            ),
            tools=seeded_tools(0, number),
            drop=(drops or {}).get(number, Drop.NEVER),
        )
        for number, (config, vector) in enumerate(
            zip(task.devices, one_hot(len(task.devices)), strict=True)
        )
    ]


def message_name(event: client.Event | server.Event) -> str:
    """The table's name of an event."""
    if isinstance(event, (client.Received, server.Received)):
        return type(messages.peek(event.message, *messages.KINDS)[0]).__name__
    return type(event).__name__


@cache
def recorded_run() -> Run:
    """A run without drop-outs that ends in a release."""
    task = make_task(CLIENTS, LENGTH, slice_length=4, survivors_min=3)
    devices = make_recorded(task)
    pool = LocalDevices(devices)
    aggregator = RecordedAggregator(
        task, pool.advertise(), cohort=bytes(32), attempt=0, hooks=Hooks()
    )
    device = devices[0]
    result = drive(aggregator, pool)
    assert isinstance(result.state, server.Released)
    client_states: dict[str, client.State] = {}
    client_events: dict[str, client.Event] = {}
    for before, event in device.trace:
        client_states.setdefault(before.phase, before)
        client_events.setdefault(message_name(event), event)
    client_states[device.state.phase] = device.state
    server_states: dict[str, server.State] = {}
    server_events: dict[str, server.Event] = {}
    index = aggregator.index_of[device.number]
    for before, event in aggregator.trace:
        server_states.setdefault(before.phase, before)
        if getattr(event, "index", index) == index:
            server_events.setdefault(message_name(event), event)
    server_states[aggregator.state.phase] = aggregator.state
    return Run(task, device, aggregator, client_states, client_events, server_states, server_events)


def secrets_in(value: object) -> list[str]:
    """Paths of all Secret objects inside a state."""
    found: list[str] = []

    def walk(item: object, path: str) -> None:
        if isinstance(item, Secret):
            found.append(path)
        elif is_dataclass(item) and not isinstance(item, type):
            for field in fields(item):
                walk(getattr(item, field.name), f"{path}.{field.name}")
        elif isinstance(item, dict):
            for key, inner in item.items():
                walk(inner, f"{path}[{key}]")
        elif isinstance(item, (tuple, list, frozenset)):
            for place, inner in enumerate(item):
                walk(inner, f"{path}[{place}]")

    walk(value, type(value).__name__)
    return found
