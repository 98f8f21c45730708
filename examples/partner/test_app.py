"""The whole life of an installed app: python -m unittest discover examples/partner"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

from app import Errands
from bad_network import BadNetwork

from client_sdk import repoint_bundles, testing

FOLDER = Path(__file__).parent
QUIET_S = 60.0


class Process:
    """The app as the user started it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []

    @classmethod
    async def start(cls, *arguments: str | Path) -> Process:
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, FOLDER / "app.py", *arguments, "--small"),
                stdin=pipe,
                stdout=pipe,
            )
        )

    def say(self, command: str) -> None:
        self.process.stdin.write(f"{command}\n".encode())

    async def until(self, kind: str) -> dict[str, Any]:
        """The next event of this kind."""
        async with asyncio.timeout(QUIET_S):
            while line := await self.process.stdout.readline():
                self.events.append(json.loads(line))
                if self.events[-1]["event"] == kind:
                    return self.events[-1]
        raise AssertionError(f"{kind} never came: {self.events[-3:]}")

    async def kill(self) -> None:
        """As an operating system does that needs the memory."""
        self.process.kill()
        await self.process.wait()


class LifeTest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().set_debug(False)  # unittest sets it, and it is slow
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    async def test_it_joins_is_paused_killed_resumed_moved_and_contributes(self) -> None:
        async with testing.Aggregator(FOLDER / "task.toml", devices=4) as service:
            bundle, state = service.bundle(self.folder / "device.json"), self.folder / "state"
            others = service.clients(3)

            app = await Process.start(bundle, state)
            self.assertIn("3", (await app.until("explained"))["text"])  # devices in the least sum
            await app.until("training")
            app.say("pause")
            await app.until("paused")
            app.say("resume")
            first = asyncio.create_task(service.run(others, Errands()))
            await app.until("uploading")
            await app.kill()
            self.assertEqual(service.releases, [])

            app = await Process.start(bundle, state)
            await app.until("resumed")
            await app.until("released")
            await first
            self.assertEqual([release.survivors for release in service.releases], [4])
            app.say("stop")
            ended = await app.until("ended")
            self.assertTrue(ended["stopped"])
            self.assertEqual(await app.process.wait(), 0)

            async with BadNetwork(
                service.url, bytes_per_s=200_000, cut_after=40_000, seed=3
            ) as network:
                moved = await asyncio.to_thread(repoint_bundles, [bundle], network.url)
                self.assertEqual(moved, (bundle,))
                second = asyncio.create_task(service.run(others, Errands()))
                app = await Process.start(bundle, state)
                released = await app.until("released")
                await second
                self.assertGreater(network.cuts, 0)
                self.assertEqual(released["release"], 2)
                self.assertEqual([release.survivors for release in service.releases], [4, 4])

                app.say("forget")
                gone = await app.until("forgotten")
                self.assertNotEqual(gone["account"], "gone")  # what was spent still counts
                self.assertTrue(gone["lasting"])
                self.assertEqual(await app.process.wait(), 0)
                self.assertFalse(bundle.exists())


if __name__ == "__main__":
    unittest.main()
