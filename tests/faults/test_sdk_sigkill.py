"""Real processes, real SIGKILL: a device killed in the middle of step 3 finishes its round."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from client_sdk.enrolment import save_bundle
from tests.kits import device_process
from tests.kits.world import TASK, OneHot, World, plain_spec

ROOT = Path(__file__).parents[2]


class Process:
    """``sdk_device`` in its own process."""

    def __init__(self, world: World, name: str, number: int, hold_at: str = "") -> None:
        bundle = world.folder / f"{name}.json"
        save_bundle(bundle, world.bundle(name))
        self._arguments = [str(bundle), str(world.folder / name), str(number), hold_at]

    async def __aenter__(self) -> Process:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            device_process.__file__,
            *self._arguments,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def lines(self) -> list[dict[str, Any]]:
        """What it prints until it ends, or stands still at the event it was told."""
        assert self.process.stdout is not None
        seen = []
        async for line in self.process.stdout:
            seen.append(json.loads(line))
            if seen[-1].get("event") == self._arguments[-1]:
                break
        return seen


@pytest.mark.parametrize("kind", ["masking", "uploaded"])
async def test_a_killed_process_is_in_the_sum_once_and_needs_no_torch(
    tmp_path: Path, kind: str
) -> None:
    async with World(tmp_path, plain_spec()) as world:
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        async with Process(world, "d0", 0, hold_at=kind) as device:
            assert (await device.lines())[-1]["event"] == kind
            device.process.send_signal(signal.SIGKILL)
            assert await device.process.wait() == -signal.SIGKILL
        async with Process(world, "d0", 0) as device:
            lines = await device.lines()
        assert lines[0]["event"] == "resumed"
        assert "training" not in [line.get("event") for line in lines]
        assert lines[-1] == {"releases": [1], "torch": False}
        await asyncio.gather(*others)
        assert (await world.sums()).tolist() == [1.0] * 4 + [0.0] * 12
        assert world.audit().verified
