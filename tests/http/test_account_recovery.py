"""A device that lost its state folder finds all its charges again in the ledger, and no others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rfc8785
from aiohttp import web
from typer.testing import CliRunner

from aggregator.cohorts import charging
from aggregator.http.app import SERVICE
from client_sdk import Event
from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.accounts.recovery import Recovered, SecondLook
from client_sdk.enrolment import save_bundle
from client_sdk.errors import ClockError, LedgerRefusal
from client_sdk.network.server_time import CLOCK_WRONG_S
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from dp.contracts import BudgetSpec, DeadlineSpec, TaskSpec
from dp.ledger.records import identity_digest
from secagg.context import pseudonym
from secagg.http_api import Offer
from secagg.secret import Secret
from secagg.server import State, survivors_of
from secagg_cli.main import app
from tests.kits.world import POLICY, TASK, Killed, OneHot, World, kill_at, plain_spec

OTHER = "other"
DEVICES = 4


def noised(task: str, **deadlines: float) -> TaskSpec:
    return plain_spec(
        DEVICES,
        task=task,
        device_noise_multiplier=8.0,
        budget=BudgetSpec(max_epsilon=None, releases_max=4),
        deadlines=DeadlineSpec(report_s=60.0, **deadlines),
    )


def journal_of(world: World, name: str) -> Journal:
    folder = world.folder / name
    return Journal(folder, open_storage_key(folder))


def spent(world: World, name: str) -> dict[str, float]:
    account = DeviceAccount(journal_of(world, name), POLICY.max_delta)
    return {
        "charges": account.charges(TASK),
        "other charges": account.charges(OTHER),
        "epsilon": account.epsilon(TASK),
        "other epsilon": account.epsilon(OTHER),
        "total": account.total("device").stated or 0.0,
    }


async def a_release(world: World, task: str, *names: str) -> None:
    await asyncio.gather(
        *(
            world.device(name).run_async(OneHot(number), task=task, rounds=1)
            for number, name in enumerate(names)
        )
    )


async def a_charge_without_a_release(world: World, task: str) -> None:
    """Two of four devices die before they send: the two that sent are charged all the same."""
    aborted = [asyncio.Event() for _ in range(2)]

    def staying(number: int) -> Callable[[Event], None]:
        return lambda event: aborted[number].set() if event.kind == "aborted" else None

    stay = [
        asyncio.create_task(
            world.device(f"d{n}", staying(n)).run_async(OneHot(n), task=task, rounds=1)
        )
        for n in (0, 1)
    ]
    died = await asyncio.gather(
        *(
            world.device(f"d{n}", kill_at("uploading")).run_async(OneHot(n), task=task, rounds=1)
            for n in (2, 3)
        ),
        return_exceptions=True,
    )
    assert [type(error) for error in died] == [Killed, Killed]
    await asyncio.gather(*(event.wait() for event in aborted))
    for task_ in stay:
        task_.cancel()
    await asyncio.gather(*stay, return_exceptions=True)


async def charged_in_two_tasks(world: World) -> None:
    """d0 to d3: a charge without a release in TASK, and a release in OTHER."""
    await world.post("/v1/operator/tasks", noised(OTHER))
    await a_release(world, OTHER, "d0", "d1", "d2", "d3")
    await a_charge_without_a_release(world, TASK)


async def recovered(world: World, name: str) -> Recovered:
    return await world.device(name).recover_account_async()


def forget(world: World, name: str) -> None:
    shutil.rmtree(world.folder / name)


async def test_a_device_that_lost_its_folder_recovers_the_same_epsilon(tmp_path: Path) -> None:
    async with World(tmp_path, noised(TASK, masked_input_s=2.0)) as world:
        await charged_in_two_tasks(world)
        await world.app[SERVICE].ledger.publish()
        audit = world.audit()
        assert audit.verified, audit.problems
        assert (audit.releases, audit.charged) == (1, 2)
        before = {name: spent(world, name) for name in ("d0", "d2")}
        assert (before["d0"]["charges"], before["d0"]["other charges"]) == (1, 1)
        for name in before:
            forget(world, name)
            found = await recovered(world, name)
            assert (found.charges, found.added) == ({TASK: 1, OTHER: 1}, 2)
            assert spent(world, name) == before[name]
            assert (await recovered(world, name)).added == 0  # what is there stays as it is
            assert spent(world, name) == before[name]


async def test_a_new_state_folder_is_filled_before_anything_else(tmp_path: Path) -> None:
    """No app has to know that its folder was lost; and a device that is new pays for nothing."""
    async with World(tmp_path, noised(TASK)) as world:
        await a_release(world, TASK, "d0", "d1", "d2", "d3")
        before = spent(world, "d0")
        forget(world, "d0")
        events: list[Event] = []
        again = [world.device("d0", events.append), *(world.device(f"d{n}") for n in (1, 2))]
        results = await asyncio.gather(
            *(
                device.run_async(OneHot(number), task=TASK, rounds=1)
                for number, device in enumerate([*again, world.device("new")])
            )
        )
        assert next((e.kind, dict(e.detail)) for e in events) == ("recovered", {"charges": 1})
        assert spent(world, "d0")["charges"] == 2
        assert spent(world, "d0") == spent(world, "d1")
        assert spent(world, "new") == before
        assert results[0].epsilon == results[1].epsilon


async def until(world: World, name: str, kind: str, **parts: Any) -> None:
    """Run a device until it tells of this event."""
    device = world.device(name, **parts)
    async with contextlib.aclosing(device.participate(OneHot(0), task=TASK)) as events:
        async for event in events:
            if event.kind == kind:
                return


async def test_a_cohort_that_was_open_at_the_loss_is_found_when_it_has_ended(
    tmp_path: Path,
) -> None:
    async with World(tmp_path, noised(TASK, confirm_s=2.0)) as world:
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        with pytest.raises(Killed):
            await world.device("d0", kill_at("uploaded")).run_async(OneHot(0), task=TASK)
        forget(world, "d0")
        await until(world, "d0", "checked-in")
        assert spent(world, "d0")["charges"] == 0  # no record tells of it yet
        await asyncio.gather(*others)
        ahead = {"clock": lambda: time.time() + 3_000}  # the device's own clock decides nothing
        await until(world, "d0", "checked-in", **ahead)
        assert spent(world, "d0")["charges"] == 0
        saying(world, 3_000)  # the steps of an open cohort are over
        await until(world, "d0", "checked-in")
        assert spent(world, "d0") == spent(world, "d1")
        leaves = journal_of(world, "d0").load_record("second-look", SecondLook)
        assert leaves == SecondLook(due_s=0)  # and not again


def saying(world: World, off_s: float) -> None:
    """The server's word about time is off from now on."""

    async def gate(request: web.Request, body: bytes) -> bytes | None:
        if not request.path.endswith("/offer"):
            return None
        offer = msgspec.json.decode(body, type=Offer)
        return msgspec.json.encode(msgspec.structs.replace(offer, now=offer.now + off_s))

    world.gate = gate


def planned(world: World, name: str) -> float:
    look = journal_of(world, name).load_record("second-look", SecondLook)
    assert look is not None
    return look.due_s


async def test_a_command_that_recovers_plans_the_second_look_and_does_it(tmp_path: Path) -> None:
    """A ledger that is too long for a run is read by the command alone, both times.

    It hears no word about time, so each time its clock may be as wrong as a run would bear.
    """
    async with World(tmp_path, noised(TASK)) as world:
        now = time.time()
        await recovered(world, "d0")
        assert now < planned(world, "d0") - CLOCK_WRONG_S < now + 3_000
        for ahead_s in (0, CLOCK_WRONG_S + 3_000):
            early = world.device("d0", clock=lambda: time.time() + ahead_s)  # noqa: B023  used here
            await early.recover_account_async()
            assert planned(world, "d0") > now
        later = world.device("d0", clock=lambda: time.time() + 2 * CLOCK_WRONG_S + 3_000)
        await later.recover_account_async()
        assert planned(world, "d0") == 0


async def test_a_new_device_with_a_wrong_clock_is_told_before_it_plans_by_it(
    tmp_path: Path,
) -> None:
    async with World(tmp_path, noised(TASK)) as world:
        with pytest.raises(ClockError):
            await until(world, "d0", "checked-in", clock=lambda: time.time() + 1e7)
        assert not (world.folder / "d0" / "second-look").exists()
        await until(world, "d0", "checked-in")
        assert planned(world, "d0") < time.time() + 3_000


async def test_a_contribution_does_not_outlive_the_account(tmp_path: Path) -> None:
    """Only the account knew that it had served a cohort, and the ledger does not say."""
    async with World(tmp_path, noised(TASK)) as world:
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        with pytest.raises(Killed):
            await world.device("d0", kill_at("uploading")).run_async(OneHot(0), task=TASK)
        assert (world.folder / "d0" / "contribution").exists()
        (world.folder / "d0" / "account").unlink()
        async with contextlib.aclosing(
            world.device("d0").participate(OneHot(0), task=TASK)
        ) as events:
            async for event in events:
                if event.kind == "resumed":
                    break
        assert not (world.folder / "d0" / "contribution").exists()
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def test_an_account_that_was_deleted_is_filled_again(tmp_path: Path) -> None:
    async with World(tmp_path, noised(TASK)) as world:
        await a_release(world, TASK, "d0", "d1", "d2", "d3")
        before = spent(world, "d0")
        (world.folder / "d0" / "account").unlink()
        assert not (await world.device("d0").resume_async()).releases
        await recovered(world, "d0")
        assert spent(world, "d0") == before


async def test_the_ledger_names_nobody_twice_and_nobody_by_its_identity(tmp_path: Path) -> None:
    async with World(tmp_path, noised(TASK)) as world:
        for _ in range(2):
            await a_release(world, TASK, "d0", "d1", "d2", "d3")
        audit = world.audit()
        assert audit.verified, audit.problems
        entries = [release.entry for release in audit.tasks[0].releases]
        names = [name for entry in entries for name in (*entry.contributors, *entry.not_in_sum)]
        assert len(set(names)) == len(names) == 2 * DEVICES
        bundles = [world.bundle(f"d{n}") for n in range(DEVICES)]
        keys = [bundle.certificate.identity_key for bundle in bundles]
        assert not {identity_digest(key) for key in keys} & set(names)
        for entry in entries:
            own = {pseudonym(Secret(bundle.identity_seed), entry.ctx) for bundle in bundles}
            assert own == set(entry.contributors)


async def test_a_record_that_names_devices_by_their_identity_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a session of an older software accepts what everybody can follow."""

    def named(state: State, *sets: object) -> charging._Listed:
        keys = [state.facts.identity(index) for index in survivors_of(state)]
        return charging._Listed(tuple(identity_digest(key) for key in keys))

    monkeypatch.setattr(charging, "_listed", named)
    async with World(tmp_path, noised(TASK)) as world:
        ended = await asyncio.gather(
            *(
                world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1)
                for n in range(DEVICES)
            ),
            return_exceptions=True,
        )
        assert [getattr(error, "reason", error) for error in ended] == ["release-mismatch"] * 4


async def test_a_list_beside_the_ledger_serves_device_auditor_and_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp.ledger.records.INLINE_MAX", DEVICES - 1)
    async with World(tmp_path, noised(TASK)) as world:
        await a_release(world, TASK, "d0", "d1", "d2", "d3")
        audit = world.audit()
        assert audit.verified, audit.problems
        (release,) = audit.tasks[0].releases
        assert len(release.entry.contributors) == DEVICES
        assert len(list((world.app[SERVICE].ledger.folder / "contributors").iterdir())) == 1
        before = spent(world, "d0")
        forget(world, "d0")
        assert (await recovered(world, "d0")).charges == {TASK: 1}
        assert spent(world, "d0") == before


@pytest.mark.parametrize("leaves_max", [0, 1])
async def test_a_ledger_beyond_the_limit_is_refused_with_the_way_out(
    tmp_path: Path, leaves_max: int
) -> None:
    async with World(tmp_path, noised(TASK)) as world:
        await a_release(world, TASK, "d0", "d1", "d2", "d3")
        with pytest.raises(LedgerRefusal) as caught:
            await world.device("d0").recover_account_async(leaves_max)
        assert caught.value.reason == "ledger-too-long"
        assert "--leaves-max" in str(caught.value.remedy)
        assert (await world.device("d0").recover_account_async(2)).charges == {TASK: 1}


async def test_records_that_the_checkpoint_does_not_sign_are_not_believed(tmp_path: Path) -> None:
    """A replaced bundle hides a charge; the account of a new folder is not written from it."""

    def hiding(body: bytes) -> Callable[[web.Request, bytes], Awaitable[bytes | None]]:
        async def gate(request: web.Request, answer: bytes) -> bytes | None:
            return body if "/tile/entries/" in request.path else None

        return gate

    async with World(tmp_path, noised(TASK)) as world:
        await a_release(world, TASK, "d0", "d1", "d2", "d3")
        before = spent(world, "d0")
        forget(world, "d0")
        policy = rfc8785.dumps({"type": "policy"})
        entry = len(policy).to_bytes(2, "big") + policy
        world.gate = hiding(entry + entry)
        with pytest.raises(LedgerRefusal, match="ledger-forked"):
            await recovered(world, "d0")
        world.gate = None
        await recovered(world, "d0")
        assert spent(world, "d0") == before


async def test_the_command_recovers_from_the_bundle_alone(tmp_path: Path) -> None:
    async with World(tmp_path, noised(TASK)) as world:
        await a_release(world, TASK, "d0", "d1", "d2", "d3")
        before = spent(world, "d0")
        bundle, state = tmp_path / "d0.json", tmp_path / "again"
        save_bundle(bundle, world.bundle("d0"))
        command = ["account", "recover", str(bundle), "--state", str(state), "--format", "json"]
        result = await asyncio.to_thread(CliRunner().invoke, app, command)
        assert result.exit_code == 0, result.output
        said = json.loads(result.stdout)
        assert (said["charges"], said["added"], said["records"]) == ({TASK: 1}, 1, 2)
        assert said["epsilons"] == {TASK: pytest.approx(before["epsilon"])}
        assert said["deltas"] == {TASK: world.manifest().budget.delta}
        other = [*command[:4], str(world.folder / "d1"), *command[5:]]
        refused = await asyncio.to_thread(CliRunner().invoke, app, other)
        assert refused.exit_code != 0
        assert "state-of-another-device" in refused.output
        assert spent(world, "d1") == before  # not one charge was added
        shutil.rmtree(world.folder / "d0")
        shutil.copytree(state, world.folder / "d0")
        assert spent(world, "d0") == before


async def test_the_command_recovers_a_folder_under_a_passphrase(tmp_path: Path) -> None:
    async with World(tmp_path, noised(TASK)) as world:
        bundle, state, secret = (tmp_path / name for name in ("d0.json", "again", "secret"))
        save_bundle(bundle, world.bundle("d0"))
        secret.write_text("a passphrase\n")
        key = open_storage_key(state, "a passphrase", operations=1, memory_bytes=1 << 13)
        command = ["account", "recover", str(bundle), "--state", str(state), "--format", "json"]
        result = await asyncio.to_thread(
            CliRunner().invoke, app, [*command, "--passphrase-file", str(secret)]
        )
        assert result.exit_code == 0, result.output
        assert Journal(state, key).load_blob("account") is not None
