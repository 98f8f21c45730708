"""python -m unittest discover examples/chat"""

from __future__ import annotations

import asyncio
import queue
import tempfile
import unittest
from pathlib import Path

from app import Learner, Power, answer, learner, policy, trainer
from model import small_model

from client_sdk import Event, PrivacyPolicy, testing

TASK_FILE = Path(__file__).with_name("task.toml")
CHATS = [
    {"prompt": "hello how are you", "answer": "i am fine thanks"},
    {"prompt": "what is the weather", "answer": "it is sunny and warm today"},
] * 4


class ChatTest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().set_debug(False)  # unittest sets it, and it is slow
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.events: queue.Queue[Event] = queue.Queue()

    def learner(self, bundle: Path, policy: PrivacyPolicy) -> Learner:
        state = self.folder / "state"
        return learner(bundle, state, CHATS, policy=policy, on_event=self.events.put)

    async def until(self, kind: str) -> None:
        """Wait for the learner's next event of this kind."""

        def wait() -> None:
            while self.events.get(timeout=100).kind != kind:
                pass

        await asyncio.to_thread(wait)

    async def test_it_learns_in_the_background_rests_while_somebody_chats_and_stops(self) -> None:
        model, tokenizer = small_model()
        async with testing.Aggregator(TASK_FILE, devices=3, model=model) as service:
            learns = self.learner(
                service.bundle(), service.policy(may_train=policy(Power()).may_train)
            )
            learns.start()
            await self.until("training")
            learns.pause()  # somebody chats
            await self.until("paused")
            self.assertIsInstance(answer(model, tokenizer, "hello"), str)
            learns.resume()
            others = [trainer(CHATS), trainer(CHATS)]
            await service.run(service.clients(2), others)
            await self.until("released")
            await asyncio.to_thread(learns.stop)
            self.assertEqual([release.survivors for release in service.releases], [3])
        self.assertIsNone(learns.error)
        self.assertTrue(learns.result.stopped)
        self.assertFalse(learns.result.pending)
        self.assertEqual(len(learns.result.releases), 1)
        self.assertEqual(learns.result.used, len(CHATS))

    async def test_nothing_happens_on_battery(self) -> None:
        model, _ = small_model()
        power = Power()
        power.charging = False
        async with testing.Aggregator(TASK_FILE, devices=3, model=model) as service:
            learns = self.learner(
                service.bundle(), service.policy(may_train=policy(power).may_train)
            )
            learns.start()
            await self.until("refused")
            await asyncio.to_thread(learns.stop)
        self.assertEqual([refusal.reason for refusal in learns.result.refusals], ["not-now"])


if __name__ == "__main__":
    unittest.main()
