"""Late, doubled, reordered, replayed and damaged messages, with drop-outs, at random.

Whatever happens: a released sum is exactly the sum of its contributors, each once; every cohort
ends; no device reveals both kinds of share for one neighbour.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secagg import client, messages, server
from secagg.simulation import (
    Aggregator,
    Drop,
    Hooks,
    LocalDevices,
    Output,
    SimulatedTask,
    drive,
    make_devices,
    make_task,
)

CLIENTS = 5
TASK: SimulatedTask = make_task(CLIENTS, CLIENTS, slice_length=3, survivors_min=3)
VECTORS = [np.eye(CLIENTS, dtype=np.int64)[number] for number in range(CLIENTS)]

chaos = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def is_inbox(message: bytes) -> bool:
    content, _ = messages.peek(message, *messages.KINDS)
    return isinstance(content, messages.Inbox)


class Chaos:
    """Hooks that draw their mischief from hypothesis."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.seen: dict[int, list[bytes]] = defaultdict(list)
        self.sent: list[bytes] = []
        # Who was handed another device's inbox before its own: it complains of all dealers in it.
        self.misled: set[int] = set()

    def draw(self, strategy: st.SearchStrategy) -> object:
        return self.data.draw(strategy)

    def downward(self, number: int, message: bytes) -> list[bytes]:
        mine = self.seen[number]
        choice = self.draw(st.sampled_from(["as is", "twice", "old", "other", "damaged"]))
        extra: list[bytes] = []
        if choice == "twice":
            extra = [message]
        elif choice == "old" and mine:
            extra = [self.draw(st.sampled_from(mine))]
        elif choice == "other":
            pool = [m for other, ms in self.seen.items() if other != number for m in ms]
            extra = [self.draw(st.sampled_from(pool))] if pool else []
        elif choice == "damaged":
            extra = [self.damage(message)]
        mine.append(message)
        first = self.draw(st.booleans())
        if first and choice == "other" and any(is_inbox(each) for each in extra):
            self.misled.add(number)
        return [*extra, message] if first else [message, *extra]

    def upward(self, number: int, message: bytes) -> list[bytes]:
        choice = self.draw(st.sampled_from(["as is", "twice", "old", "damaged"]))
        extra: list[bytes] = []
        if choice == "twice":
            extra = [message]
        elif choice == "old" and self.sent:
            extra = [self.draw(st.sampled_from(self.sent))]
        elif choice == "damaged":
            extra = [self.damage(message)]
        self.sent.append(message)
        return [*extra, message]

    def damage(self, message: bytes) -> bytes:
        place = self.draw(st.integers(0, len(message) - 1))
        kind = self.draw(st.sampled_from(["flip", "cut", "grow"]))
        if kind == "flip":
            changed = bytearray(message)
            changed[place] ^= 1 << self.draw(st.integers(0, 7))
            return bytes(changed)
        return message[:place] if kind == "cut" else message + b"\x00"

    def order(self, outputs: list[Output]) -> list[Output]:
        return list(self.draw(st.permutations(outputs)))


@pytest.mark.slow
@chaos
@given(st.data())
def test_disorder_changes_no_sum(data: st.DataObject) -> None:
    drops = data.draw(
        st.dictionaries(st.integers(0, CLIENTS - 1), st.sampled_from(list(Drop)), max_size=3)
    )
    mischief = Chaos(data)
    revealed: dict[tuple[int, int], set[int]] = defaultdict(set)

    def upward(number: int, message: bytes) -> list[bytes]:
        content, _ = messages.peek(message, *messages.KINDS)
        if isinstance(content, messages.Unmask):
            for share in content.shares:
                revealed[number, share.owner].add(share.kind)
        return mischief.upward(number, message)

    devices = make_devices(TASK, VECTORS, drops=drops)
    pool = LocalDevices(devices)
    hooks = Hooks(upward=upward, downward=mischief.downward, order=mischief.order)
    aggregator = Aggregator(TASK, pool.advertise(), cohort=bytes(32), attempt=0, hooks=hooks)
    result = drive(aggregator, pool)

    assert isinstance(result.state, (server.Released, server.Aborted))
    assert all(len(kinds) == 1 for kinds in revealed.values())
    lost = {number for number, drop in drops.items() if drop is not Drop.NEVER}
    if isinstance(result.state, server.Released):
        assert result.total is not None
        assert result.total.tolist() == [int(n in result.survivors) for n in range(CLIENTS)]
        assert set(result.survivors) >= set(range(CLIENTS)) - lost - mischief.misled
        assert len(result.survivors) >= 3
    if len(lost | mischief.misled) <= 1:
        assert isinstance(result.state, server.Released)
    for device in devices:
        if device.number not in lost:
            assert isinstance(device.state, (client.Finished, client.Failed))


@pytest.mark.slow
@chaos
@given(st.binary(max_size=200), st.integers(0, 6))
def test_any_bytes_are_refused_by_name_or_change_nothing(noise: bytes, stage: int) -> None:
    """Stage: how many of the aggregator's messages the device has had before the noise."""
    seen: list[int] = []

    def downward(number: int, message: bytes) -> list[bytes]:
        if number != 0:
            return [message]
        seen.append(number)
        return [noise, message] if len(seen) == stage + 1 else [message]

    def upward(number: int, message: bytes) -> list[bytes]:
        return [noise, message] if number == 0 else [message]

    devices = make_devices(TASK, VECTORS)
    pool = LocalDevices(devices)
    hooks = Hooks(upward=upward, downward=downward)
    aggregator = Aggregator(TASK, pool.advertise(), cohort=bytes(32), attempt=0, hooks=hooks)
    result = drive(aggregator, pool)
    assert isinstance(result.state, server.Released)
    assert len(result.survivors) == CLIENTS
    assert isinstance(devices[0].state, client.Finished)
