"""python -m unittest discover examples/custom"""

from __future__ import annotations

import asyncio
import json
import tempfile
import unittest
from pathlib import Path

import numpy as np
from app import Typing

from client_sdk import testing

TASK_FILE = Path(__file__).with_name("task.toml")


class TypingTest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().set_debug(False)  # unittest sets it, and it is slow
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def device(self, number: int, count: int = 2_500) -> Typing:
        random = np.random.default_rng(number)
        records = self.folder / f"{number}.jsonl"
        lines = (
            {
                "word": "x" * int(random.integers(1, 15)),
                "hour": int(random.integers(24)),
                "corrected": bool(random.random() < 0.1),
            }
            for _ in range(count)
        )
        records.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Typing(records)

    async def test_both_statistics_are_released_and_a_lost_device_comes_back(self) -> None:
        async with testing.Aggregator(TASK_FILE, devices=4) as service:
            clients, devices = service.clients(4), [self.device(number) for number in range(4)]
            await service.run(clients, devices, lost={2: "uploaded"})
            [first] = service.releases
            self.assertEqual(first.survivors, 4)  # its vector had come
            self.assertEqual(first.sums["word-lengths"].shape, (12,))
            self.assertEqual(first.sums["corrections"].shape, (24,))
            self.assertTrue(clients[2].has_pending())
            result = await clients[2].resume_async()
            self.assertFalse(clients[2].has_pending())
            self.assertEqual(len(result.releases), 1)  # its vector is in the sum
            self.assertGreater(result.epsilon, 0.0)

    async def test_another_task_is_refused_before_anything_is_sent(self) -> None:
        task = {
            "task": "typing",
            "algorithm": "sum",
            "device_noise_multiplier": 4.0,
            "segments": [{"name": "pressure", "length": 5, "clip": 1.0}],
        }
        async with testing.Aggregator(task, devices=4) as service:
            [result] = await service.run([service.client()], self.device(9, 10))
            self.assertEqual([one.reason for one in result.refusals], ["other-statistics"])
            self.assertEqual(service.charges, 0)


if __name__ == "__main__":
    unittest.main()
