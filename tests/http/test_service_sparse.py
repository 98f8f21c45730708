"""A cohort on the sparse graph over HTTP: the service derives it, every device checks it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dp.contracts import CohortSpec, SegmentSpec
from secagg.messages import KINDS, Deals, peek
from tests.kits.service import Device, current_sum, finished, run, served, spec

CLIENTS, LOST, CORRUPT_MAX = 129, 2, 6
COHORT = CohortSpec(size_min=CLIENTS, size_max=CLIENTS, survivors_min=120, corrupt_max=CORRUPT_MAX)


async def test_129_devices_deal_to_their_neighbours_alone_and_the_sum_is_exact(
    tmp_path: Path,
) -> None:
    counts = (SegmentSpec(name="count", length=CLIENTS, clip=1.0),)
    task = spec(cohort=COHORT, segments=counts)
    async with served(tmp_path, task) as server:
        fleet = [
            Device(server, n, np.eye(CLIENTS)[n], "vector" if n < LOST else None)
            for n in range(CLIENTS)
        ]
        results = await run(fleet)
        rules = fleet[0].config.manifest.cohort
        assert 0 < rules.degree < CLIENTS - 1
        assert finished(results) == CLIENTS - LOST
        for device in fleet[LOST:]:
            assert len(deals_of(device)) == rules.degree
        expected = np.arange(CLIENTS) >= LOST
        assert np.allclose(await current_sum(server), expected, atol=1e-3)
        view = await server.view()
        assert view["releases"][-1]["survivors"] == CLIENTS - LOST


def deals_of(device: Device) -> tuple[bytes, ...]:
    for signed in device.sent:
        message, _ = peek(signed, *KINDS)
        if isinstance(message, Deals):
            return message.deals
    raise AssertionError("no deals were sent")
