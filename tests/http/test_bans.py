"""A liar pays with its identity, a nameless spoiler with its place, the service for itself."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from nacl.signing import SigningKey
from typer.testing import CliRunner

from aggregator.cohorts import releasing
from aggregator.cohorts.standing import strike
from aggregator.store.schema import bans, cohort_events, sessions, strikes
from dp.contracts import BudgetSpec
from dp.errors import MechanismError
from dp.ledger.records import identity_digest
from dp.ledger.verification import verify_ledger
from secagg import client
from secagg.evidence import verify_evidence
from secagg.keys import issue_certificate
from secagg.messages import KINDS, Complaint, Deal, Inbox, Ready, Unmask, peek, sign
from secagg.secret import Secret
from secagg.tools import system_tools
from secagg_cli.main import app
from secagg_cli.operator.client import TOKEN_ENV
from tests.kits.service import (
    TOKEN,
    Device,
    Liar,
    Served,
    devices,
    finished,
    one_hot,
    run,
    served,
    spec,
)
from tests.kits.spoilers import Spoiler, again, rows


def key_of(device: Device) -> str:
    return bytes(SigningKey(device.seed.reveal()).verify_key).hex()


def ledger_text(server: Served) -> bytes:
    folder = server.service.ledger.folder
    return b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


def audited(server: Served) -> Any:
    folder: Path = server.service.ledger.folder

    def read(path: str) -> bytes | None:
        return (folder / path).read_bytes() if (folder / path).is_file() else None

    result = verify_ledger(read, server.service.ledger.verifier)
    assert result.verified, result.problems
    return result


async def command(*arguments: str, code: int = 0) -> Any:
    """A command's JSON, with the operator's token at hand."""

    def invoke() -> Any:
        return CliRunner().invoke(app, [*arguments, "--format", "json"], env={TOKEN_ENV: TOKEN})

    done = await asyncio.to_thread(invoke)
    assert done.exit_code == code, done.output
    return msgspec.json.decode(done.stdout)


async def test_a_lying_dealer_costs_one_charge_and_its_identity(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        liar = Liar(server, 3, one_hot(3))
        honest = devices(server, 3)
        await run([*honest, liar])
        view = await server.view()
        assert [(r["outcome"], r["reason"], r["fault"]) for r in view["releases"]] == [
            ("charged", "dealer-self-seed", "devices")
        ]
        (ban,) = await rows(server, bans)
        assert (ban.identity, ban.kind, ban.transferable) == (
            key_of(liar),
            "dealer-self-seed",
            True,
        )
        assert verify_evidence(ban.evidence).identity.hex() == key_of(liar)
        assert await rows(server, cohort_events) == []
        assert await rows(server, strikes) == []

        file = tmp_path / "evidence"
        got = await command(
            "device", "evidence", key_of(liar), "--out", str(file), "--server", server.url
        )
        assert (got["kind"], got["transferable"]) == ("dealer-self-seed", True)
        shown = await command("device", "verify", str(file))  # offline
        assert (shown["device"], shown["kind"]) == (key_of(liar), "dealer-self-seed")
        file.write_bytes(ban.evidence[:-1])
        refused = await command("device", "verify", str(file), code=1)
        assert refused["error"]["reason"] == "evidence-malformed"

        back = again(liar)
        async with aiohttp.ClientSession() as back.http:
            status, body = await back.request("GET", "/v1/tasks/statistics/offer")
        problem = msgspec.json.decode(body)
        assert (status, problem["reason"]) == (403, "device-banned")
        assert "dealer-self-seed" in problem["message"]
        assert ban.handle[:16] in problem["remedy"]

        fourth = Device(server, 3, one_hot(3))
        assert finished(await run([*map(again, honest), fourth])) == 4
        ((_, record),) = audited(server).memberships
        assert (record.action, record.cause, record.device) == (
            "banned",
            "dealer-self-seed",
            ban.handle,
        )
        text = ledger_text(server)
        identity = bytes.fromhex(key_of(liar))
        assert key_of(liar).encode() not in text
        assert identity_digest(identity).hex().encode() not in text


async def test_the_task_waits_and_the_operator_hears_why(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        honest = devices(server, 3)
        await run([*honest, Liar(server, 3, one_hot(3))])
        waiting = [asyncio.create_task(again(device).run()) for device in honest]
        view = await server.until(lambda view: view["waiting"] == 3)
        assert view["why_waiting"] == (
            "A cohort needs 4 devices; 3 wait. Banned in this task: 1 (secagg device list)."
        )
        assert view["charges"] == 1
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_an_advert_of_a_banned_device_is_refused_in_any_task(tmp_path: Path) -> None:
    """Also one that comes without a look at the offer, and while another session waits."""
    async with served(tmp_path, spec()) as server:
        device = Device(server, 0, one_hot(0), stop_before="roster")
        async with aiohttp.ClientSession() as device.http:
            await device.report_in()
            assert len(await rows(server, sessions)) == 1
            status, shown = await server.operator(
                "POST", f"/devices/{key_of(device)}/ban", {"note": "a stolen phone"}
            )
            assert (status, shown["kind"], shown["note"]) == (200, "operator", "a stolen phone")
            assert await rows(server, sessions) == []
            status, body = await device.request("GET", f"{device.session}/messages?after=0")
            assert (status, msgspec.json.decode(body)["reason"]) == (403, "device-banned")
            model = (await server.view())["model_digest"]
            for path in (f"/v1/models/{model}", f"/v1/deltas/{model}/{model}"):
                status, body = await device.request("GET", path)
                assert (status, msgspec.json.decode(body)["reason"]) == (403, "device-banned")
            device.state, (sent,) = client.advertise(
                device.config,
                model_version=0,
                model_digest=device.state.model_digest,
                now_s=server.clock(),
                lifetime_s=600,
                tools=system_tools(),
            )
            status, body = await device.request("POST", "/v1/adverts", data=sent.message)
            assert (status, msgspec.json.decode(body)["reason"]) == (403, "device-banned")
            assert (await server.operator("POST", f"/devices/{key_of(device)}/ban", {}))[0] == 409
            assert b"stolen" not in ledger_text(server)
            headers = {"Authorization": f"Bearer {TOKEN}"}
            url = f"{server.url}/v1/operator/devices/{key_of(device)}/unban"
            async with device.http.post(url, headers=headers) as answer:
                assert answer.status == 204
            status, body = await device.request("POST", "/v1/adverts", data=sent.message)
            assert status == 200
        actions = [record.action for _, record in audited(server).memberships]
        assert actions == ["banned", "unbanned"]


async def test_a_device_that_is_banned_while_its_cohort_shares_is_left_out(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def hold(name: str) -> None:
            if name == "ready":
                reached.set()
                await go_on.wait()

        for device in fleet[1:]:
            device.hold = hold
        running = asyncio.create_task(run(fleet))
        await reached.wait()
        await server.operator("POST", f"/devices/{key_of(fleet[0])}/ban", {})
        (live,) = server.service.driver.live.values()
        await server.service.watch._poll()
        assert live.cohort.state.excluded
        go_on.set()
        outcomes = await running
        assert finished(outcomes) == 3
        assert isinstance(outcomes[0], client.Failed)
        view = await server.view()
        assert [(r["outcome"], r["survivors"]) for r in view["releases"]] == [("released", 3)]


async def test_a_wrong_vector_strikes_all_in_the_sum_and_bans_nobody(tmp_path: Path) -> None:
    budget = BudgetSpec(max_epsilon=None, releases_max=8)
    async with served(tmp_path, spec(budget=budget)) as server:
        spoiler = Spoiler(server, 3, one_hot(3))
        honest = devices(server, 3)
        await run([*honest, spoiler])
        view = await server.view()
        assert [(r["reason"], r["fault"]) for r in view["releases"]] == [
            ("check-coordinates", "devices")
        ]
        assert await rows(server, bans) == []
        struck = {row.identity for row in await rows(server, strikes)}
        assert struck == {key_of(device) for device in (*honest, spoiler)}

        # Four that are not in question go first, though the struck ones came before them.
        waiting = [asyncio.create_task(again(d).run()) for d in (*honest, spoiler)]
        others = [Device(server, n, one_hot(n)) for n in range(4, 8)]
        await server.until(lambda view: view["waiting"] == 4)
        assert finished(await run(others)) == 4
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_who_stops_after_ready_is_struck_alone(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        for device in fleet[:2]:
            device.stop_before = "header"
        await run(fleet)
        view = await server.view()
        assert [(r["outcome"], r["reason"], r["fault"]) for r in view["releases"]] == [
            ("charged", "too-few-vectors", "devices")
        ]
        (charge,) = view["releases"]
        assert charge["lacking"] == "2 of 4 vectors came; at least 3 are needed"
        assert (charge["vectors"], charge["dropped"]) == (2, 2)
        assert (charge["struck"], charge["banned"]) == (2, 0)
        found = await rows(server, strikes)
        assert {row.identity for row in found} == {key_of(device) for device in fleet[:2]}
        assert {row.kind for row in found} == {"too-few-vectors"}
        status, listed = await server.operator("GET", "/devices")
        assert status == 200
        assert {row["device"] for row in listed["strikes"]} == {row.identity for row in found}


async def test_a_sum_that_the_service_fails_to_open_strikes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("it cannot")

    monkeypatch.setattr(releasing.Releaser, "release", broken)
    async with served(tmp_path, spec()) as server:
        await run(devices(server, 4))
        view = await server.view()
        assert [(r["outcome"], r["reason"], r["fault"]) for r in view["releases"]] == [
            ("charged", "release-failed", "service")
        ]
        assert await rows(server, strikes) == []
        (task,) = audited(server).tasks
        (release,) = task.releases
        assert (release.entry.fault, release.entry.cause) == ("service", "release-failed")


async def test_a_noise_that_is_measured_missing_is_the_devices_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def missing(*_: Any) -> None:
        raise MechanismError("noise-measured-missing", "so it is")

    monkeypatch.setattr(releasing.Releaser, "release", missing)
    async with served(tmp_path, spec()) as server:
        await run(devices(server, 4))
        assert len(await rows(server, strikes)) == 4


async def test_a_deadline_that_passed_while_nobody_served_gives_the_charge_back(
    tmp_path: Path,
) -> None:
    """Devices were ready to send when the service went away; nobody had sent a byte."""
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        for device in fleet:
            device.stop_before = "header"
        tasks = [asyncio.create_task(device.run()) for device in fleet]
        await asyncio.gather(*tasks)
        assert (await server.view())["charges"] == 1  # reserved: S is fixed
        await server.stop()
        server.ahead_s += 180.0
        await server.start()
        view = await server.until(lambda view: view["cohort"] is None)
        assert (view["charges"], view["releases"], view["aborted"]) == (0, [], 1)
        assert [(c["reason"], c["size"]) for c in view["ended_free"]] == [("too-few-vectors", 4)]
        assert await rows(server, strikes) == []
        (task,) = audited(server).tasks
        assert [p["action"] for p in task.policies] == ["charge-given-back"]
        again_ = devices(server, 4)
        assert finished(await run(again_)) == 4
        assert (await server.view())["charges"] == 1


@pytest.mark.parametrize("late_s", [-2.0, 5.0, 16.0])
async def test_a_restart_of_any_length_costs_nothing_while_nobody_had_sent(
    tmp_path: Path, late_s: float
) -> None:
    """``late_s``: from the deadline of the masked input to the new process, or before it."""
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        for device in fleet:
            device.stop_before = "header"
        await asyncio.gather(*(device.run() for device in fleet))
        (live,) = server.service.driver.live.values()
        deadline_s = live.cohort.state.deadline_s
        await server.stop()
        server.ahead_s += deadline_s + late_s - server.clock()
        await server.start()
        server.ahead_s += max(0.0, -late_s)
        view = await server.until(lambda view: view["cohort"] is None)
        assert (view["charges"], view["releases"]) == (0, [])
        assert await rows(server, strikes) == []
        (policy,) = audited(server).tasks[0].policies
        assert policy["action"] == "charge-given-back"
        assert "fault unknown, too-few-vectors; nobody had sent" in policy["detail"]


async def test_a_short_restart_stays_charged_once_somebody_sent(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        for device in fleet[1:]:
            device.stop_before = "header"
        fleet[0].stop_before = "vector"
        await asyncio.gather(*(device.run() for device in fleet))
        await server.stop()
        server.ahead_s += 75.0
        await server.start()
        view = await server.until(lambda view: view["cohort"] is None)
        assert [(r["outcome"], r["fault"]) for r in view["releases"]] == [("charged", "unknown")]
        assert await rows(server, strikes) == []


async def test_devices_that_stop_before_they_send_are_charged_where_nothing_failed(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        for device in fleet:
            device.stop_before = "header"
        await asyncio.gather(*(device.run() for device in fleet))
        server.ahead_s += 61.0
        view = await server.until(lambda view: view["cohort"] is None)
        assert [(r["outcome"], r["fault"]) for r in view["releases"]] == [("charged", "devices")]
        assert len(await rows(server, strikes)) == 4


async def test_a_deadline_that_passed_unserved_stays_charged_once_somebody_sent(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        for device in fleet[1:]:
            device.stop_before = "header"
        fleet[0].stop_before = "vector"  # its header is in, so it may have begun
        await asyncio.gather(*(device.run() for device in fleet))
        await server.stop()
        server.ahead_s += 180.0
        await server.start()
        view = await server.until(lambda view: view["cohort"] is None)
        assert [(r["outcome"], r["fault"]) for r in view["releases"]] == [("charged", "service")]
        assert view["charges"] == 1
        assert await rows(server, strikes) == []


async def test_a_holder_that_changes_a_share_is_banned_and_the_others_are_released(
    tmp_path: Path,
) -> None:
    answered = asyncio.Event()

    class Holder(Device):
        async def post(self, message: bytes) -> int:
            found, _ = peek(message, *KINDS)
            if not isinstance(found, Unmask):
                return await super().post(message)
            first, *rest = found.shares
            wrong = msgspec.structs.replace(first, share=b"\x07" + first.share[1:])
            changed = msgspec.structs.replace(found, shares=(wrong, *rest))
            status = await super().post(sign(changed, found.ctx, SigningKey(self.seed.reveal())))
            answered.set()
            return status

    async def hold(name: str) -> None:
        if name == "unmask":
            await answered.wait()

    async with served(tmp_path, spec()) as server:
        liar = Holder(server, 0, one_hot(0))
        await run([liar, *devices(server, 4, hold=hold)[1:]])
        view = await server.view()
        assert [r["outcome"] for r in view["releases"]] == ["released"]
        (ban,) = await rows(server, bans)
        assert (ban.identity, ban.kind, ban.transferable) == (key_of(liar), "unmask-share", False)
        ((_, record),) = audited(server).memberships
        assert record.cause == "unmask-share"


async def test_a_dealer_of_many_disputed_deals_is_struck_not_banned(tmp_path: Path) -> None:
    """Who disputes more dealers than may be corrupt is out, but nothing proves that it lies."""

    class Accuser(Device):
        async def post(self, message: bytes) -> int:
            found, _ = peek(message, *KINDS)
            if isinstance(found, Ready):
                accused = tuple(sorted(self.inbox))
                evidence = tuple(self.inbox[index] for index in accused)
                complaint = Complaint(found.ctx, found.index, accused, evidence, found.pseudonym)
                message = sign(complaint, found.ctx, SigningKey(self.seed.reveal()))
            return await super().post(message)

        async def feed(self, event: client.Event) -> None:
            if isinstance(event, client.Received):
                found, _ = peek(event.message, *KINDS)
                if isinstance(found, Inbox):
                    self.inbox = {peek(deal, Deal)[0].sender: deal for deal in found.deals}
            await super().feed(event)

    async with served(tmp_path, spec()) as server:
        accuser = Accuser(server, 0, one_hot(0))
        await run([accuser, *devices(server, 4)[1:]])
        assert await rows(server, bans) == []
        (struck,) = await rows(server, strikes)
        assert (struck.identity, struck.kind) == (key_of(accuser), "named-without-evidence")


async def test_a_ban_says_whether_the_device_was_ever_seen(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        device = Device(server, 0, one_hot(0))
        async with aiohttp.ClientSession() as device.http:
            await device.report_in()
        for key, seen in ((device.certificate.identity_key.hex(), True), ("77" * 32, False)):
            status, shown = await server.operator("POST", f"/devices/{key}/ban", {})
            assert (status, shown["seen"]) == (200, seen)


async def test_a_device_is_struck_once_for_a_cohort(tmp_path: Path) -> None:
    """Also where it is in question twice: named without evidence, and in a sum that was refused."""
    async with served(tmp_path) as server:
        both = [(b"a" * 32, b"p" * 32), (b"b" * 32, b"p" * 32)]
        async with server.service.core.database.write() as connection:
            assert await strike(connection, b"c" * 32, "check-coordinates", both[:1], 1.0) == 1
            assert await strike(connection, b"c" * 32, "named-without-evidence", both, 1.0) == 1
            assert await strike(connection, b"d" * 32, "check-coordinates", both, 1.0) == 2
        assert len(await rows(server, strikes)) == 4


async def test_a_removed_partners_devices_are_refused_and_tasks_go_on(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        other = bytes(SigningKey.generate().verify_key)
        await server.operator("POST", "/partners", {"name": "other", "key": other})
        await server.set_up(spec())
        waiting = Device(server, 0, one_hot(0))
        async with aiohttp.ClientSession() as waiting.http:
            await waiting.report_in()
            own = waiting.certificate.partner_key.hex()
            status, shown = await server.operator("POST", f"/partners/{own}/remove")
            assert (status, shown) == (200, {"tasks": ["statistics"]})
            assert await rows(server, sessions) == []
            status, _ = await waiting.request("GET", "/v1/tasks/statistics/offer")
            assert status == 403
            status, body = await waiting.request("GET", "/v1/tasks/statistics/offer")
            assert msgspec.json.decode(body)["reason"] == "partner-removed"
        status, problem = await server.operator("POST", f"/partners/{other.hex()}/remove")
        assert (status, problem["reason"]) == (409, "partner-last")
        ((_, record),) = audited(server).memberships
        assert (record.action, record.partner) == ("partner-removed", own)


async def test_a_removed_partner_that_is_added_again_is_back_in_the_ledger(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        other = bytes(SigningKey.generate().verify_key)
        await server.operator("POST", "/partners", {"name": "other", "key": other})
        await server.set_up(spec())
        device = Device(server, 0, one_hot(0))
        own = device.certificate.partner_key
        for _ in range(2):
            await server.operator("POST", f"/partners/{own.hex()}/remove")
            await server.restart()  # it is remembered
            for _ in range(2):  # the second changes nothing
                status, _ = await server.operator("POST", "/partners", {"name": "p", "key": own})
                assert status == 200
        async with aiohttp.ClientSession() as device.http:
            await device.report_in()
        found = audited(server).memberships
        assert [(record.action, record.partner) for _, record in found] == [
            ("partner-removed", own.hex()),
            ("partner-added", own.hex()),
        ] * 2


async def test_a_device_of_no_partner_hears_who_certified_it(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        stranger = Device(server, 0, one_hot(0))
        seed = Secret(b"s" * 32)
        identity = stranger.certificate.identity_key
        stranger.certificate = issue_certificate(seed, identity, int(time.time()) + 999)
        async with aiohttp.ClientSession() as stranger.http:
            status, body = await stranger.request("GET", "/v1/tasks/statistics/offer")
        problem = msgspec.json.decode(body)
        assert (status, problem["reason"]) == (401, "partner-unknown")
        assert stranger.certificate.partner_key.hex() in problem["message"]
        assert "partner add" in problem["remedy"]
