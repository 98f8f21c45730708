"""The app's own tests, without a service: python -m unittest discover examples/histogram"""

from __future__ import annotations

import asyncio
import unittest
from pathlib import Path

import numpy as np
from app import POLICY, Histogram

from client_sdk import testing

TASK_FILE = Path(__file__).with_name("task.toml")


class HistogramTest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().set_debug(False)  # unittest sets it, and it is slow
        random = np.random.default_rng(1)
        self.devices = [Histogram(random.normal(240, 60, 30)) for _ in range(4)]

    async def test_the_sum_over_all_devices_is_released(self) -> None:
        async with testing.Aggregator(TASK_FILE, devices=4) as service:
            results = await service.run(service.clients(4), self.devices)
            [release] = service.releases
            true = sum(device.contribute(None)["minutes"] for device in self.devices)
            off = np.abs(release.sums["minutes"] - true)
            self.assertLess(float(off.max()), 6 * release.deviation["minutes"])
            self.assertGreater(float(off.max()), 0.0)  # the noise is real
            for result in results:
                self.assertEqual(result.failures, ())
                self.assertEqual(len(result.releases), 1)
                self.assertLess(result.epsilon, POLICY.max_epsilon)

    async def test_a_device_that_vanishes_stops_nobody(self) -> None:
        async with testing.Aggregator(TASK_FILE, devices=4) as service:
            await service.run(service.clients(4), self.devices, lost={0: "masking"})
            self.assertEqual([release.survivors for release in service.releases], [3])

    async def test_the_apps_policy_refuses_so_small_a_cohort(self) -> None:
        async with testing.Aggregator(TASK_FILE, devices=4) as service:
            [result] = await service.run([service.client(policy=POLICY)], self.devices[:1])
            self.assertEqual([refusal.reason for refusal in result.refusals], ["cohort-too-small"])


if __name__ == "__main__":
    unittest.main()
