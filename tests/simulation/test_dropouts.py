"""The released sum is exactly the sum of its contributors, whoever drops and whenever."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from secagg import client, server
from secagg.simulation import Drop, Task, make_devices, make_task, run_cohort

CLIENTS = 6
LOST = [drop for drop in Drop if drop is not Drop.NEVER]
IN_THE_SUM = {Drop.LISTEN, Drop.CONFIRM, Drop.UNMASK, Drop.NEVER}


def one_hot(clients: int = CLIENTS) -> list[np.ndarray]:
    """Device i sends 1 in coordinate i, so a double count shows as a 2."""
    return [np.eye(clients, dtype=np.int64)[number] for number in range(clients)]


@pytest.fixture(scope="module")
def task() -> Task:
    # k = 5, c = 0: t = 3, so two drop-outs are within the bound.
    return make_task(CLIENTS, CLIENTS, slice_length=4, survivors_min=4, corrupt_max=0)


@pytest.mark.parametrize("first", LOST)
@pytest.mark.parametrize("second", LOST)
def test_any_two_dropouts_within_the_bound_release_the_exact_sum(
    task: Task, first: Drop, second: Drop
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
def test_dropouts_beyond_the_bound_abort_cleanly(task: Task, drop: Drop) -> None:
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
