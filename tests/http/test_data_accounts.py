"""Two identities over one data set, with a real aggregator between them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from client_sdk import Event, RunResult
from client_sdk.accounts.data_door import DataChoice
from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from dp.accounting.statements import headline, lines
from dp.contracts import BudgetSpec, DeadlineSpec, TaskSpec
from tests.kits.world import POLICY, TASK, Killed, OneHot, World, plain_spec

OTHER = "other"


def noised(task: str) -> TaskSpec:
    return plain_spec(
        4,
        task=task,
        deadlines=DeadlineSpec(report_s=60.0, masked_input_s=120.0),
        device_noise_multiplier=8.0,
        budget=BudgetSpec(max_epsilon=None, releases_max=4),
    )


async def run(
    world: World, number: int, name: str, data: DataChoice | None = None, task: str = TASK
) -> tuple[RunResult, list[Event]]:
    events: list[Event] = []
    device = world.device(name, events.append, data=data)
    return await device.run_async(OneHot(number), task=task, rounds=1), events


async def test_two_identities_over_one_data_set_share_its_account(tmp_path: Path) -> None:
    data = DataChoice("journal", tmp_path / "registry")
    async with World(tmp_path, noised(TASK)) as world:
        await world.post("/v1/operator/tasks", noised(OTHER))
        first, *_ = await asyncio.gather(
            run(world, 0, "d0", data), *(run(world, n, f"d{n}") for n in (1, 2, 3))
        )
        assert (len(first[0].releases), first[0].counted) == (1, (tmp_path / "d0",))
        told = first[1][0]
        assert (told.kind, told.detail["counts"], told.detail["charges_of_others"]) == (
            "account",
            "data",
            0,
        )
        # another bundle of the same user: not in this task, and not with a new budget
        twin, events = await run(world, 4, "twin", data)
        assert [refusal.reason for refusal in twin.refusals] == ["data-in-task"]
        assert [event.kind for event in events] == ["account", "refused"]
        assert events[0].detail["charges_of_others"] == 1
        assert twin.counted == (tmp_path / "d0", tmp_path / "twin")
        second, *_ = await asyncio.gather(
            run(world, 4, "twin", data, OTHER),
            *(run(world, n, f"d{n}", None, OTHER) for n in (1, 2, 3)),
        )
        assert len(second[0].releases) == 1
        assert next(event.kind for event in second[1]) == "checked-in"  # it is told once
        tight = replace(POLICY, max_total_epsilon=second[0].epsilon * 1.01)
        device = world.device("d0", data=data, policy=tight)
        result = await device.run_async(OneHot(0), task=TASK, rounds=1)
        assert [refusal.reason for refusal in result.refusals] == ["own-total-budget"]


async def test_of_two_identities_in_one_cohort_one_steps_back_before_it_pays(
    tmp_path: Path,
) -> None:
    """Both were admitted before either had paid."""
    data = DataChoice("journal", tmp_path / "registry")
    async with World(tmp_path, noised(TASK)) as world:
        twins = [asyncio.create_task(run(world, n, f"d{n}", data)) for n in (0, 1)]
        others = [asyncio.create_task(run(world, n, f"d{n}")) for n in (2, 3)]
        done, waiting = await asyncio.wait(twins, return_when=asyncio.FIRST_COMPLETED)
        await stopped(*waiting, *others)
        (stepped_back,) = [task.result() for task in done]
        assert [refusal.reason for refusal in stepped_back[0].refusals] == ["data-in-task"]
        reasons = [e.detail["reason"] for e in stepped_back[1] if e.kind == "aborted"]
        assert reasons == ["data-in-task"]
        charged = [len(account_of(tmp_path / f"d{n}").cohorts()) for n in (0, 1)]
        assert sorted(charged) == [0, 1]
        with world.device("d0", data=data)._opened() as (_, account):
            assert account.charges(TASK) == 1


async def stopped(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def account_of(folder: Path) -> DeviceAccount:
    """What the folder has by itself."""
    return DeviceAccount(Journal(folder, open_storage_key(folder)), 1e-5)


async def test_a_budget_that_another_folder_spent_meanwhile_is_not_overdrawn(
    tmp_path: Path,
) -> None:
    """Admitted, trained, in the roster; then another folder pays; the debit looks once more."""
    data = DataChoice("journal", tmp_path / "registry")
    async with World(tmp_path, noised(TASK)) as world:
        elsewhere = world.device("elsewhere", data=data)

        def on_event(event: Event) -> None:
            if event.kind == "roster":
                with elsewhere._opened() as (_, account):
                    other = msgspec.structs.replace(world.manifest(), task=OTHER)
                    account.debit(other, bytes(32), "c")
            if event.kind == "aborted":
                raise Killed

        one = headline(lines(world.manifest(), 1))
        policy = replace(POLICY, max_total_epsilon=one * 1.01, units="device")
        device = world.device("d0", on_event, data=data, policy=policy)
        others = [asyncio.create_task(run(world, n, f"d{n}")) for n in (1, 2, 3)]
        with pytest.raises(Killed):
            await device.run_async(OneHot(0), task=TASK, rounds=1)
        await stopped(*others)
        assert account_of(tmp_path / "d0").cohorts() == ()
