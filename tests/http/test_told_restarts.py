"""What an app is told over a restart: nothing is lost, and nothing is told twice."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import pytest

from client_sdk.accounts.recovery import plan_second_look
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from client_sdk.training.dataset import Cut, LeftOut
from tests.kits.world import TASK, Killed, OneHot, World, kill_at, plain_spec

DEVICES = 4


class Leaves(OneHot):
    left_out = (LeftOut(3, "example-label", "The model has no such class."),)
    cut = (Cut(2, 100, 64),)
    examples = 5


@pytest.mark.parametrize("moment", ["trained", "masking", "uploaded"])
async def test_examples_that_count_as_zero_are_told_over_a_restart(
    tmp_path: Path, moment: str
) -> None:
    async with World(tmp_path, plain_spec(DEVICES)) as world:
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in range(1, DEVICES)
        ]
        with pytest.raises(Killed):
            await world.device("d0", kill_at(moment)).run_async(Leaves(0), task=TASK, rounds=1)
        result = await world.device("d0").run_async(OneHot(0), task=TASK, rounds=1)
        assert len(result.releases) == 1
        assert (result.left_out, result.cut) == (Leaves.left_out, Leaves.cut)
        assert (result.examples, result.used) == (5, 4)
        await asyncio.gather(*others)


async def test_charges_that_were_found_again_are_told_once(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(DEVICES)) as world:
        await asyncio.gather(
            *(
                world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1)
                for n in range(DEVICES)
            )
        )
        folder = world.folder / "d0"
        shutil.rmtree(folder)
        kinds: list[str] = []
        await world.device("d0", lambda event: kinds.append(event.kind)).recover_account_async()
        assert kinds.count("recovered") == 1
        plan_second_look(Journal(folder, open_storage_key(folder)), time.time() - 1)
        await world.device("d0", lambda event: kinds.append(event.kind)).recover_account_async()
        assert kinds.count("recovered") == 1
