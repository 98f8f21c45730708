"""python -m unittest discover examples/classifier"""

from __future__ import annotations

import asyncio
import unittest
from pathlib import Path

import numpy as np
from app import POLICY, trainer
from model import small_model

from client_sdk import testing

TASK_FILE = Path(__file__).with_name("task.toml")
TARGETS = ("query", "value")
REVIEWS = [
    {"text": "a great film", "label": 1},
    {"text": "the plot was dull", "label": 0},
    {"text": "good plot good film", "label": 1},
    {"text": "the film was bad", "label": 0},
] * 3


class ClassifierTest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().set_debug(False)  # unittest sets it, and it is slow

    async def test_devices_train_and_the_user_is_told_what_was_not_used(self) -> None:
        model, _ = small_model()
        async with testing.Aggregator(
            TASK_FILE, devices=3, model=model, targets=TARGETS, step=descend
        ) as service:
            wrong = [*REVIEWS, {"text": "a film", "label": 7}]
            trainers = [trainer(REVIEWS), trainer(REVIEWS), trainer(wrong)]
            results = await service.run(service.clients(3), trainers)
            [release] = service.releases
            self.assertEqual(release.survivors, 3)
            for result in results:
                self.assertEqual(result.failures, ())
                self.assertEqual(result.used, len(REVIEWS))
                self.assertLess(0.0, result.epsilon)
                self.assertLess(result.epsilon, POLICY.max_epsilon)
            self.assertEqual([one.index for one in results[2].left_out], [len(REVIEWS)])


def descend(vector: np.ndarray, release: testing.Release) -> np.ndarray:
    """A step of gradient descent, as the service takes it: its length is the operator's choice."""
    return vector - 0.1 * release.sums["gradient"].astype(np.float32) / release.survivors


if __name__ == "__main__":
    unittest.main()
