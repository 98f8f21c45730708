"""Failures as an operator meets them: each is told with its cause, and where it came from."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from pathlib import Path

import aiohttp
import msgspec
import pytest
import sqlalchemy as sa
from nacl.signing import SigningKey

from aggregator import logs
from aggregator.cohorts.actor import Cohort
from secagg import http_api
from tests.kits.log_lines import lines, of
from tests.kits.service import (
    TASK,
    TOKEN,
    Device,
    Served,
    devices,
    finished,
    run,
    served,
    spec,
)
from tests.kits.walls import answered, connect

OPERATOR = {"Authorization": f"Bearer {TOKEN}"}


def fill_disk(server: Served) -> None:
    """SQLite may take no page more: it fails as it does where the disk is full."""
    engine = server.service.core.database._engine.sync_engine

    def full(connection: object, *_: object) -> None:
        connection.execute("PRAGMA max_page_count=1")  # type: ignore[attr-defined]

    sa.event.listen(engine, "checkout", full)


async def test_a_full_disk_is_told_with_type_traceback_request_and_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path, spec()) as server:
        logs.configure()
        fill_disk(server)
        body = msgspec.json.encode(spec(task="another"))
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{server.url}/v1/operator/tasks", data=body, headers=OPERATOR) as answer,
        ):
            problem = msgspec.json.decode(await answer.read(), type=http_api.Problem)
            name = answer.headers["X-Request-Id"]
        assert (answer.status, problem.reason, problem.request_id) == (500, "internal", name)
        assert problem.remedy is not None
        assert name in problem.remedy
        (line,) = of("failed", lines(capsys))
        assert (line["request_id"], line["remote"]) == (name, "127.0.0.1")
        assert line["error"] == "sqlite3.OperationalError"
        assert "database or disk is full" in line["message"]
        assert "Traceback" in line["exception"]
        assert line["route"] == "POST /v1/operator/tasks"


async def test_a_failure_within_a_cohort_is_told_with_cohort_phase_and_pseudonym(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path, spec()) as server:
        logs.configure()
        submit, failed = Cohort.submit, []

        async def fails_once(cohort: Cohort, *events: object, **more: object) -> None:
            if not failed:
                failed.append(cohort.id)
                raise sqlite3.OperationalError(f"value {fleet[0].seed.reveal()!r}")
            await submit(cohort, *events, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(Cohort, "submit", fails_once)
        fleet = devices(server, 4)

        async def again(device: Device, message: bytes) -> int:
            status, _ = await device.request("POST", f"{device.session}/messages", data=message)
            if status == 500:
                return await again(device, message)
            return status

        for device in fleet:
            device.post = lambda message, device=device: again(device, message)  # type: ignore[method-assign]
        assert finished(await run(fleet)) == 4
        told = lines(capsys)
        (line,) = of("failed", told)
        keys = [bytes(SigningKey(device.seed.reveal()).verify_key) for device in fleet]
        names = {server.service.core.pseudonyms.device(key) for key in keys}
        assert (line["cohort"], line["task"], line["phase"]) == (failed[0], TASK, "sharing")
        assert line["device"] in names
        assert line["message"] == "value <bytes>"
        assert not [key for key in keys if key.hex()[:16] in str(told)]


async def test_what_a_task_that_nobody_awaits_fails_of_is_one_line_of_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure()

    async def fails() -> None:
        raise OSError("password=hunter2 is wrong")

    forgotten: asyncio.Task[None] | None = asyncio.create_task(fails())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    forgotten = None
    gc.collect()
    (line,) = [line for line in lines(capsys) if line["component"] == "asyncio"]
    assert line["event"].startswith("Task exception was never retrieved")
    assert (line["error"], line["level"]) == ("OSError", "error")
    assert "hunter2" not in str(line)
    assert forgotten is None


async def test_malformed_http_is_told_with_its_address_and_an_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path, spec()) as server:
        logs.configure()
        reader, writer = await connect(server, "127.0.0.7")
        writer.write(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        status, reason, headers = await answered(reader)
        writer.close()
        assert (status, reason) == (400, "head-malformed")
        (line,) = of("refused", lines(capsys))
        assert (line["reason"], line["remote"], line["request_id"]) == (
            "head-malformed",
            "127.0.0.7",
            headers["x-request-id"],
        )


@pytest.mark.parametrize(
    "key",
    [
        bytes(32),
        b"\x01" + bytes(31),  # the neutral element
        bytes.fromhex(
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"
        ),  # order 2
        bytes.fromhex(
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"
        ),  # order 8
        b"\xff" * 32,  # not the shortest form of its number
    ],
    ids=["zero", "neutral", "order-2", "order-8", "not-canonical"],
)
async def test_a_partners_key_for_which_anybody_could_sign_is_refused(
    tmp_path: Path, key: bytes
) -> None:
    async with served(tmp_path) as server:
        status, problem = await server.operator("POST", "/partners", {"name": "p", "key": key})
        assert (status, problem["reason"]) == (422, "partner-key")
        assert "secagg partner key" in problem["remedy"]
