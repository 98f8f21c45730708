"""A partner ends certificates early: the service obeys at once, and devices hold it to that."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from typer.testing import CliRunner

from aggregator.store import partners
from aggregator.store.partners import sealed_devices
from client_sdk import TransportError
from client_sdk.enrolment import new_partner_key, save_bundle, save_partner_key
from client_sdk.rounds.revocations import revoked_by
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from dp.contracts import BudgetSpec
from secagg.access_token import issue_access_token
from secagg.keys import issue_certificate
from secagg.revocation import sign_revocations
from secagg.secret import Secret
from secagg_cli.main import app
from secagg_cli.operator.client import TOKEN_ENV
from tests.kits.world import TASK, TOKEN, OneHot, World, plain_spec


def spec() -> Any:
    return plain_spec(4, 3, budget=BudgetSpec(max_epsilon=None, releases_max=9))


async def send(world: World, key: Any, signed: bytes) -> tuple[int, Any]:
    """As the partner with this key."""
    now = int(time.time())
    audience = msgspec.convert(world.info["task_key"], type=bytes)
    own = issue_certificate(key.seed, key.key, now + 60)
    headers = {"Authorization": f"Bearer {issue_access_token(key.seed, own, audience, now)}"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{world.url}/v1/revocations", data=signed, headers=headers) as answer,
    ):
        return answer.status, await answer.json()


async def answer(world: World, device: str, path: str) -> tuple[int, str]:
    bundle = world.bundle(device)
    token = issue_access_token(
        Secret(bundle.identity_seed), bundle.certificate, bundle.task_key, int(time.time())
    )
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http,
        http.get(f"{world.url}/v1/{path}") as answered,
    ):
        return answered.status, (await answered.json())["reason"]


async def test_a_revoked_device_is_refused_and_the_others_remember_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(tmp_path, spec()) as world:
        partner = world._partner
        gone = world.bundle("d0").certificate.identity_key
        sealed_in: list[int] = []
        monkeypatch.setattr(
            partners,
            "sealed_devices",
            lambda *given: sealed_in.append(threading.get_ident()) or sealed_devices(*given),
        )
        status, shown = await send(world, partner, sign_revocations(partner.seed, 1, 5, [gone]))
        assert (status, shown["number"], shown["devices"]) == (200, 1, 1)
        assert sealed_in[0] != threading.get_ident(), "100,000 devices would stop the event loop"
        with pytest.raises(TransportError) as caught:
            await world.device("d0").run_async(OneHot(0), task=TASK, rounds=1)
        assert caught.value.reason == "certificate-revoked"
        runs = [
            world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1) for n in range(1, 5)
        ]
        results = await asyncio.gather(*runs)
        assert [len(result.releases) for result in results] == [1] * 4
        for path in (f"models/{'0' * 64}", f"deltas/{'0' * 64}/{'0' * 64}", f"tasks/{TASK}/offer"):
            assert await answer(world, "d0", path) == (403, "certificate-revoked")
        assert await answer(world, "d1", f"models/{'0' * 64}") == (404, "not-found")
        journal = Journal(tmp_path / "d1", open_storage_key(tmp_path / "d1"))
        assert revoked_by(journal, (partner.key,)) == {(partner.key, gone)}
        audited = world.audit()
        assert audited.verified
        ((_, record),) = audited.memberships
        assert (record.action, record.number, record.partner) == (
            "revoked",
            1,
            partner.key.hex(),
        )
        assert record.digest == shown["digest"]

        # The device is enrolled again with the next list.
        status, _ = await send(world, partner, sign_revocations(partner.seed, 2, 6, []))
        assert status == 200
        again = [world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1) for n in range(4)]
        assert [len(result.releases) for result in await asyncio.gather(*again)] == [1] * 4


async def test_lists_of_others_and_old_ones_are_not_taken(tmp_path: Path) -> None:
    async with World(tmp_path, spec()) as world:
        partner, stranger, second = world._partner, new_partner_key(), new_partner_key()
        await world.post("/v1/operator/partners", {"name": "second", "key": second.key})
        device = world.bundle("d0").certificate.identity_key
        first = sign_revocations(partner.seed, 2, 5, [])
        assert (await send(world, partner, first))[0] == 200
        assert (await send(world, partner, first))[0] == 200  # the same bytes again
        for number in (1, 2):
            old = sign_revocations(partner.seed, number, 9, [device])
            status, problem = await send(world, partner, old)
            assert (status, problem["reason"]) == (409, "revocations-old")
        status, problem = await send(world, second, sign_revocations(partner.seed, 3, 9, [device]))
        assert (status, problem["reason"]) == (403, "revocations-not-yours")
        status, problem = await send(world, stranger, sign_revocations(stranger.seed, 1, 9, []))
        assert (status, problem["reason"]) == (401, "partner-unknown")
        # A partner's list ends its own certificates alone.
        status, _ = await send(world, second, sign_revocations(second.seed, 1, 9, [device]))
        assert status == 200
        runs = [world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1) for n in range(4)]
        assert [len(result.releases) for result in await asyncio.gather(*runs)] == [1] * 4
        assert len(world.audit().memberships) == 2


async def test_bans_and_revocations_by_their_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_ENV, TOKEN)
    async with World(tmp_path, spec()) as world:

        async def command(*arguments: str, code: int = 0) -> Any:
            def invoke() -> Any:
                return CliRunner().invoke(app, [*arguments, "--format", "json"])

            done = await asyncio.to_thread(invoke)
            assert done.exit_code == code, done.output
            return json.loads(done.stdout)

        server = ("--server", world.url)
        key = world.bundle("d0").certificate.identity_key.hex()
        shown = await command("device", "ban", key, "--note", "lost", *server)
        assert (shown["device"], shown["kind"], shown["seen"]) == (key, "operator", False)
        with pytest.raises(TransportError) as caught:
            await world.device("d0").run_async(OneHot(0), task=TASK, rounds=1)
        assert caught.value.reason == "device-banned"
        listed = await command("device", "list", *server)
        assert [row["note"] for row in listed["bans"]] == ["lost"]
        monkeypatch.setenv("COLUMNS", "40")
        text = await asyncio.to_thread(CliRunner().invoke, app, ["device", "list", *server])
        lines = text.stdout.splitlines()
        assert f"  {key}" in lines
        assert any(f"reference {shown['handle'][:16]}" in line for line in lines)
        text = await asyncio.to_thread(CliRunner().invoke, app, ["partner", "list", *server])
        assert text.stdout.splitlines() == [f"{world._partner.key.hex()}  p"]
        refused = await command(
            "device", "evidence", key, "--out", str(tmp_path / "e"), *server, code=1
        )
        assert refused["error"]["reason"] == "not-found"
        await command("device", "unban", key, *server)
        assert (await command("device", "list", *server))["bans"] == []
        wrong = await command("device", "ban", "no-key", *server, code=1)
        assert wrong["error"]["reason"] == "device-key"

        file, bundle = tmp_path / "partner.key", tmp_path / "d1.json"
        save_partner_key(file, world._partner.seed)
        save_bundle(bundle, world.bundle("d1"))
        revoke = ("partner", "revoke", "--partner-key", str(file))
        first = await command(*revoke, key, str(bundle), *server)
        assert (first["number"], first["devices"]) == (1, 2)
        again = await command(*revoke, str(bundle), *server)
        assert (again["number"], again["devices"]) == (1, 2)
        foreign, other = tmp_path / "foreign.json", new_partner_key()
        certificate = issue_certificate(other.seed, bytes.fromhex(key), int(time.time()) + 999)
        save_bundle(foreign, msgspec.structs.replace(world.bundle("d0"), certificate=certificate))
        wrong = await command(*revoke, str(foreign), *server, code=1)
        assert wrong["error"]["reason"] == "device-of-another-partner"
        assert other.key.hex() in wrong["error"]["message"]
        assert world._partner.key.hex() in wrong["error"]["message"]
        wrong = await command(*revoke, "--reinstate", "77" * 32, *server, code=1)
        assert wrong["error"]["reason"] == "revocation-not-listed"
        second = await command(*revoke, "--reinstate", key, *server)
        assert (second["number"], second["devices"]) == (2, 1)
        with pytest.raises(TransportError) as caught:
            await world.device("d1").run_async(OneHot(1), task=TASK, rounds=1)
        assert caught.value.reason == "certificate-revoked"

        partners = (await command("partner", "list", *server))["partners"]
        own = world._partner.key.hex()
        assert [row["partner_key"] for row in partners] == [own]
        for named in (own, "p"):
            last = await command("partner", "remove", named, *server, code=1)
            assert last["error"]["reason"] == "partner-last"
        wrong = await command("partner", "remove", "q", *server, code=1)
        assert wrong["error"]["reason"] == "partner-unknown"
        assert "there are p." in wrong["error"]["message"]
        for _ in range(2):
            twin = new_partner_key().key.hex()
            await command("partner", "add", "twin", "--key", twin, *server)
        wrong = await command("partner", "remove", "twin", *server, code=1)
        assert wrong["error"]["reason"] == "partner-name"
        assert twin in wrong["error"]["message"]
