"""When a replica says that it should get no requests, and what it then leaves alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import sqlalchemy as sa
from aiohttp import web
from nacl.signing import SigningKey

from aggregator import disk, logs
from aggregator.http.app import build_admin_app
from aggregator.store import identity, migrating
from tests.kits.log_lines import lines, of
from tests.kits.service import QUIET_S, TOKEN, Served, devices, finished, run, served, spec
from tests.kits.world import TASK, OneHot, World, plain_spec

MORE_THAN_FREE = 1 << 62


async def readiness(server: Served) -> tuple[int, str | None]:
    runner = web.AppRunner(build_admin_app(server.service))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/readyz"
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        told = await answer.json()
    await runner.cleanup()
    assert told["ready"] == (answer.status == 200)
    assert told["ready"] or told["detail"]
    return answer.status, told.get("reason")


async def test_each_reason_is_named_and_goes_when_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path, spec()) as server:
        logs.configure()
        service, well = server.service, (200, None)
        assert await readiness(server) == well

        key = tmp_path / "keys" / "task.key"
        kept = key.read_text()
        key.unlink()
        assert await readiness(server) == (503, "keys-unusable")
        assert not key.exists(), "a probe draws no key"
        key.write_text("ab" * 32)
        key.chmod(0o644)
        assert await readiness(server) == (503, "keys-unusable")
        key.chmod(0o600)
        assert await readiness(server) == (503, "keys-unusable")
        key.write_text(kept)
        assert await readiness(server) == well

        for version, told in (("9999", (503, "schema-differs")), (migrating.of_code(), well)):
            async with service.core.database.write() as connection:
                moved = sa.text("UPDATE alembic_version SET version_num = :version")
                await connection.execute(moved, {"version": version})
            assert await readiness(server) == told

        checkpoint = tmp_path / "ledger" / "checkpoint"
        away = checkpoint.rename(tmp_path / "away")
        assert await readiness(server) == (503, "ledger-unusable")
        away.rename(checkpoint)

        with monkeypatch.context() as patch:
            patch.setattr(server.settings, "disk_free_min", MORE_THAN_FREE)
            assert await readiness(server) == (503, "disk-low")

        with monkeypatch.context() as patch:
            patch.setattr(service.core.database, "answers", _away)
            assert await readiness(server) == (503, "database-away")
        assert await readiness(server) == well

        service.drain()
        assert await readiness(server) == (503, "draining")
        told = lines(capsys)
        assert {line["reason"] for line in of("not-ready", told)} == {
            "keys-unusable",
            "schema-differs",
            "ledger-unusable",
            "disk-low",
        }
        assert len(of("not-ready", told)) == 4, "each once, however often it is asked for"
        mended = [line["after"] for line in of("ready", told)]
        assert mended == ["keys-unusable", "schema-differs", "database-away"]
        (line,) = of("database-away", told)
        assert "Traceback" in line["exception"]


class _Gone:
    """An engine whose server has been stopped."""

    def connect(self) -> Any:
        return self

    async def __aenter__(self) -> Any:
        raise FileNotFoundError(2, "No such file or directory")

    async def __aexit__(self, *_: object) -> None: ...


async def test_a_database_that_is_away_is_told_once_and_callers_are_told_when_to_ask_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path, spec(), poll_s=60.0) as server:
        logs.configure()
        database = server.service.core.database
        with monkeypatch.context() as patch:
            patch.setattr(database, "_engine", _Gone())
            for _ in range(2):
                assert await readiness(server) == (503, "database-away")
            url = f"{server.url}/v1/operator/partners"
            key = bytes(SigningKey(bytes(32)).verify_key)
            partner = msgspec.json.encode({"name": "q", "key": key})
            async with (
                aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http,
                http.post(url, data=partner) as answer,
            ):
                assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
                assert (await answer.json())["reason"] == "database-away"
        assert await readiness(server) == (200, None)
        told = lines(capsys)
        (line,) = of("database-away", told)
        assert line["error"] == "FileNotFoundError"
        assert line["message"].startswith(f"{database.address} did not answer: no server listens")
        assert len(of("database-back", told)) == len(of("ready", told)) == 1
        assert of("not-ready", told) == of("failed", told) == []


async def _away() -> bool:
    raise ConnectionRefusedError(111, "Connect call failed")


async def test_below_the_mark_of_the_disk_no_cohort_is_formed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path, spec(), disk_free_min=MORE_THAN_FREE) as server:
        logs.configure()
        fleet = devices(server, 4)
        for device in fleet:
            async with aiohttp.ClientSession() as device.http:
                await device.report_in()
        view = await server.until(lambda view: view["waiting"] == 4)
        told: list[dict[str, object]] = []
        async with asyncio.timeout(QUIET_S):
            while not told:
                view = await server.view()
                told = of("cohort-held-back", lines(capsys))
        assert told[0]["reason"] == "disk-low"
        assert "disk_free_min" in str(told[0]["remedy"])
        assert (view["cohort"], view["charges"]) == (None, 0)


async def test_a_cohort_that_is_open_as_the_disk_falls_below_its_mark_is_not_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        low = disk.Full(tmp_path, 1, 2)

        async def falls(name: str) -> None:
            if name == "ready":  # formed, and S is not fixed
                monkeypatch.setattr("aggregator.cohorts.driver.full", lambda *_, **__: low)

        fleet[0].hold = falls
        assert finished(await run(fleet)) == 0
        view = await server.until(lambda view: view["cohort"] is None)
        assert (view["charges"], view["aborted"]) == (0, 1)
        assert [row["reason"] for row in view["ended_free"]] == ["disk-low"]
        monkeypatch.undo()
        assert finished(await run(devices(server, 4))) == 4


async def test_a_replica_whose_own_disk_is_full_leaves_the_cohort_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it becomes able again, instead of another replica that is."""
    asked: list[bool] = []

    def full(_: object, *, shared: bool = False) -> disk.Full | None:
        asked.append(shared)
        return None if shared or len(asked) > 3 else disk.Full(tmp_path, 1, 2)

    monkeypatch.setattr("aggregator.cohorts.driver.full", full)
    async with World(tmp_path, plain_spec(4, 3)) as world:
        runs = [world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1) for n in range(4)]
        results = await asyncio.gather(*runs)
        assert [len(result.releases) for result in results] == [1] * 4
        assert asked[:2] == [False, True]


async def test_a_replica_without_a_key_that_seals_is_not_ready(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        well = await readiness(server)
        file = tmp_path / "keys" / "sealing.keys"
        own = file.read_text()
        file.write_text(f"{'ab' * 32}\n")  # as whoever finds none draws one
        assert await readiness(server) == (503, "keys-unusable")
        file.write_text(f"{'ab' * 32}\n{own}")  # a rotation that waits for restarts
        assert await readiness(server) == well
        database = server.service.core.database
        other = ("ab" * 8, database.cells.sealing)
        assert await identity.enter_sealing_key(database, other, other[0])
        assert await readiness(server) == (503, "keys-unusable")
