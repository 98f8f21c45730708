"""Bounds of message bytes beside the messages of real cohorts: never less, and not much more."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import pytest

from dp.transfer_sizes import messages_size
from secagg.http_api import Mail
from secagg.message_sizes import DOWN, UP, message_sizes
from secagg.messages import (
    KINDS,
    Abort,
    Advert,
    Deals,
    Inbox,
    Message,
    Roster,
    Unmask,
    peek,
)
from secagg.simulation import Drop, Hooks, SimulatedTask, make_devices, make_task, run_cohort

LENGTH = 3


def sparse_or_complete(size: int) -> SimulatedTask:
    """Complete up to 128 devices, with more neighbours there than the 8 beyond."""
    return make_task(size, LENGTH, survivors_min=size * 5 // 6, degree=8, threshold=5)


def carried(
    task: SimulatedTask, drops: dict[int, Drop] | None = None
) -> tuple[dict[type[Message], int], Counter[int], Counter[int]]:
    """Of a real cohort: the largest message of each kind; bodies of HTTP up and down by device."""
    vectors = [np.zeros(LENGTH, np.int64) for _ in task.devices]
    largest: dict[type[Message], int] = {}
    up: Counter[int] = Counter()
    down: Counter[int] = Counter()

    def note(message: bytes) -> tuple[bytes, ...]:
        kind = type(peek(message, *KINDS)[0])
        largest[kind] = max(largest.get(kind, 0), len(message))
        return (message,)

    def upward(number: int, message: bytes) -> tuple[bytes, ...]:
        up[number] += len(message)
        return note(message)

    def downward(number: int, message: bytes) -> tuple[bytes, ...]:
        down[number] += len(msgspec.json.encode(Mail(messages=(message,))))
        return note(message)

    devices = make_devices(task, vectors, drops=drops or {})
    for device in devices:
        upward(device.number, device.advert)
    hooks = Hooks(upward=upward, downward=downward)
    assert run_cohort(task, vectors, hooks=hooks, devices=devices).total is not None
    return largest, up, down


@pytest.mark.parametrize("size", [4, 6, pytest.param(60, marks=pytest.mark.slow)])
def test_a_bound_is_at_most_three_tenths_above_what_the_busiest_device_carries(size: int) -> None:
    task = sparse_or_complete(size)
    largest, up, down = carried(task)
    bounds = message_sizes(task.manifest)
    assert largest.keys() == bounds.keys() == {*UP, *DOWN}
    for kind, most in largest.items():
        assert most <= bounds[kind] <= 1.3 * most, kind
    most_up, most_down = messages_size(task.manifest)
    assert max(up.values()) <= most_up <= 1.3 * max(up.values())
    assert max(down.values()) <= most_down <= 1.3 * max(down.values())


def test_noise_that_is_removed_and_drop_outs_are_within_the_bound() -> None:
    task = make_task(6, LENGTH, survivors_min=4, removable_drops=(1, 2))
    bounds = message_sizes(task.manifest)
    for drops in ({}, {0: Drop.CHECK, 1: Drop.UPLOAD}, {0: Drop.CONFIRM, 5: Drop.UNMASK}):
        largest, _, _ = carried(task, drops)
        largest.pop(Abort, None)  # to who dropped out, instead of all that follows
        assert all(most <= bounds[kind] for kind, most in largest.items()), drops
    without = message_sizes(make_task(6, LENGTH, survivors_min=4).manifest)
    longer = {kind for kind, most in bounds.items() if most > without[kind]}
    assert longer == {Deals, Inbox, Unmask}


def test_a_cohort_just_below_a_sparse_one_has_more_neighbours_and_counts() -> None:
    manifest = sparse_or_complete(129).manifest

    def deals(size_min: int, size_max: int) -> int:
        cohort = msgspec.structs.replace(manifest.cohort, size_min=size_min, size_max=size_max)
        return message_sizes(msgspec.structs.replace(manifest, cohort=cohort))[Deals]

    assert deals(129, 200) < deals(60, 127) < deals(128, 128) <= deals(60, 200)


def test_partners_and_models_of_a_manifest_are_counted() -> None:
    manifest = make_task(6, LENGTH, survivors_min=2).manifest
    several = msgspec.structs.replace(manifest, partner_keys=tuple(bytes(32) for _ in range(3)))
    rules = msgspec.structs.replace(manifest.cohort, versions_back=9)
    versions = msgspec.structs.replace(manifest, cohort=rules)
    one, trusting, older = (message_sizes(each) for each in (manifest, several, versions))
    key, version = 34, 1 + 5 + 34  # bytes in a list
    assert trusting[Advert] - one[Advert] == 3 * key
    assert trusting[Roster] - one[Roster] == 5 * 3 * key + 2 * key
    assert older[Roster] - one[Roster] == 2 * version  # of three models, each of two devices
