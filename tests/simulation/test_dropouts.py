"""The released sum is exactly the sum of its contributors, whoever drops and whenever."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from secagg import client, server
from secagg.simulation import Drop, SimulatedTask, make_devices, make_task, run_cohort

CLIENTS = 6
LOST = [drop for drop in Drop if drop is not Drop.NEVER]
IN_THE_SUM = {Drop.LISTEN, Drop.CONFIRM, Drop.UNMASK, Drop.NEVER}


def one_hot(clients: int = CLIENTS) -> list[np.ndarray]:
    """Device i sends 1 in coordinate i, so a double count shows as a 2."""
    return [np.eye(clients, dtype=np.int64)[number] for number in range(clients)]


@pytest.fixture(scope="module")
def task() -> SimulatedTask:
    # k = 5, c = 0: t = 3, so two drop-outs are within the bound.
    return make_task(CLIENTS, CLIENTS, slice_length=4, survivors_min=4, corrupt_max=0)


@pytest.mark.parametrize("first", LOST)
@pytest.mark.parametrize("second", LOST)
def test_any_two_dropouts_within_the_bound_release_the_exact_sum(
    task: SimulatedTask, first: Drop, second: Drop
) -> None:
    drops = {1: first, 4: second}
    result = run_cohort(task, one_hot(), drops=drops)
    assert isinstance(result.state, server.Released)
    expected = [int(drops.get(number, Drop.NEVER) in IN_THE_SUM) for number in range(CLIENTS)]
    assert result.total is not None
    assert result.total.tolist() == expected
    assert result.survivors == tuple(np.flatnonzero(expected))
    assert result.refused == ()


@pytest.mark.parametrize("drop", LOST)
def test_dropouts_beyond_the_bound_abort_cleanly(task: SimulatedTask, drop: Drop) -> None:
    for lost in list(combinations(range(CLIENTS), 3))[:: len(LOST) - 1]:
        drops = dict.fromkeys(lost, drop)
        devices = make_devices(task, one_hot(), drops=drops)
        result = run_cohort(task, one_hot(), devices=devices)
        assert isinstance(result.state, server.Aborted)
        assert result.total is None
        assert result.ended.reason == result.state.reason
        for device in devices:
            if device.number not in lost:
                assert isinstance(device.state, client.Failed)
                assert device.state.reason == "cohort-aborted"


def test_a_device_that_refuses_the_roster_keeps_nobody_waiting() -> None:
    """No deadline passes: the others go on as soon as they have dealt."""
    task = make_task(6, 6, slice_length=4, survivors_min=4)
    own = replace(task.devices[2], partner_keys=frozenset({b"p" * 32}))
    devices = make_devices(task, [np.eye(6, dtype=np.int64)[n] for n in range(6)])
    devices[2].config = own
    result = run_cohort(task, [], devices=devices)
    assert isinstance(result.state, server.Released)
    assert result.survivors == (0, 1, 3, 4, 5)
    assert not any(isinstance(event, server.Tick) for event in result.events)
    state = devices[2].state
    assert isinstance(state, client.Failed)
    assert state.reason == "partner-unknown"


def test_where_too_few_are_left_after_a_refusal_the_cohort_ends_at_once() -> None:
    task = make_task(4, 4, slice_length=4, survivors_min=4)
    devices = make_devices(task, [np.eye(4, dtype=np.int64)[n] for n in range(4)])
    devices[1].config = replace(task.devices[1], partner_keys=frozenset({b"p" * 32}))
    result = run_cohort(task, [], devices=devices)
    assert result.ended == server.Ended("too-few-dealers", ())
    assert not any(isinstance(event, server.Tick) for event in result.events)
