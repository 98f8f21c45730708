"""The operators' audit log, and wrong tokens."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from threading import Timer
from typing import Any

import aiohttp
import pytest
from nacl.signing import SigningKey

from aggregator import logs
from aggregator.access import OperatorAccess
from aggregator.audit import Action, AuditLog
from aggregator.errors import Refusal
from aggregator.logs.repeats import SAME_MAX
from aggregator.service import Service
from aggregator.store.models import MODELS
from secagg.errors import ConfigurationError
from tests.kits.log_lines import lines, of
from tests.kits.service import TASK, TOKEN, Served, served, spec
from tests.kits.walls import connect, ended, head, refusals, until

KEY = bytes(SigningKey(bytes(range(32))).verify_key)
WRONG = "a-token-of-somebody-else"
MODEL_ROUTE = "/v1/operator/tasks/{task}/model"


async def asked(
    server: Served,
    method: str,
    path: str,
    token: str | None,
    body: bytes | None = None,
    **more: str,
) -> tuple[int, Any]:
    headers = more if token is None else {"Authorization": f"Bearer {token}", **more}
    url = f"{server.url}/v1/operator{path}"
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, url, headers=headers, data=body) as answer,
    ):
        await answer.read()
        return answer.status, answer.headers


def action(name: str) -> Action:
    return Action(
        who="w", action=name, subject={}, remote="r", request_id="1", status=200, reason=None
    )


def written(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_who_did_what_from_where_with_which_result(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    async with served(tmp_path / "data", spec(), audit_log=file) as server:
        added, created = written(file)
        assert added["subject"]["name"] == "p"
        assert created["subject"] == {"task": TASK}
        file.rename(tmp_path / "moved")  # a new one is begun
        status, headers = await asked(server, "POST", f"/tasks/{TASK}/pause", TOKEN)
        assert status == 200
        await asked(server, "GET", "/tasks", TOKEN)  # only looked at
        await asked(server, "GET", f"/tasks/{TASK}/model", TOKEN)  # leaves the service
        await asked(server, "POST", f"/devices/{KEY.hex()}/ban", TOKEN, b"{}")
        await asked(server, "POST", "/tasks/none/pause", TOKEN)
        await asked(server, "GET", "/tasks", WRONG)
        await asked(server, "GET", "/tasks", None)
        paused, taken, banned, missed, wrong, none = told = written(file)
        who = server.service.core.pseudonyms.operator(TOKEN)
        assert paused == {
            "timestamp": paused["timestamp"],
            "event": "operator",
            "who": who,
            "action": "POST /v1/operator/tasks/{task}/pause",
            "subject": {"task": TASK},
            "remote": "127.0.0.1",
            "request_id": headers["X-Request-Id"],
            "status": 200,
        }
        assert taken["action"].endswith("/model")
        (ban,) = await server.service.membership.bans()
        assert banned["subject"] == {
            "device": server.service.core.pseudonyms.device(KEY),
            "reference": ban.handle[:16],
        }
        assert (missed["status"], missed["reason"]) == (404, "not-found")
        assert (wrong["status"], wrong["reason"]) == (403, "operator-token")
        assert wrong["who"] not in (who, None)
        assert (none["status"], none.get("who")) == (401, None)
        text = file.read_text()
        assert not [hidden for hidden in (TOKEN, WRONG, KEY.hex()) if hidden in text]
        assert len(told) == 6
        assert file.stat().st_mode & 0o077 == 0


async def test_without_a_file_the_audit_log_is_among_the_other_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path, spec()) as server:
        logs.configure("ERROR")
        capsys.readouterr()
        await asked(server, "POST", f"/tasks/{TASK}/pause", TOKEN)
        logs.configure()
        (line,) = of("operator", lines(capsys))
        assert (line["component"], line["status"]) == ("audit", 200)


async def begin_to_take(server: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a model that is larger than what the sockets between here and there hold."""
    _, view = await server.operator("GET", f"/tasks/{TASK}")
    file = server.service.core.blobs.path(f"{MODELS}/{view['model_digest']}")
    assert file is not None
    file.chmod(0o600)
    os.truncate(file, 64 << 20)
    reader, writer = await connect(server)
    writer.write(head("GET", f"/v1/operator/tasks/{TASK}/model", TOKEN))
    await reader.readexactly(1 << 10)
    return reader, writer


async def test_a_model_whose_taking_is_broken_off_is_in_the_audit_log_and_counted(
    tmp_path: Path,
) -> None:
    file = tmp_path / "audit.jsonl"
    async with served(tmp_path / "data", spec(), audit_log=file) as server:
        _, writer = await begin_to_take(server)
        writer.transport.abort()
        await until(lambda: written(file)[-1]["action"] == f"GET {MODEL_ROUTE}")
        taken = written(file)[-1]
        assert (taken["status"], taken["subject"]) == ("broken off", {"task": TASK})
        counted = server.service.core.metrics.requests.labels(f"GET {MODEL_ROUTE}", "broken off")
        assert counted._value.get() == 1


async def test_a_model_that_nobody_reads_is_given_up_in_time(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    more = {"audit_log": file, "answer_max_s": 0.2}
    async with served(tmp_path / "data", spec(), **more) as server:
        reader, _ = await begin_to_take(server)
        await until(lambda: refusals(server).get("answer-not-taken") == 1)
        assert len(await ended(reader)) < 64 << 20
        assert written(file)[-1]["status"] == "broken off"


async def test_an_audit_log_that_cannot_be_written_is_told_at_the_start_and_stops_no_operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    async with served(tmp_path / "data", spec(), audit_log=folder / "audit") as server:
        logs.configure("ERROR")
        (folder / "audit").unlink()
        folder.rmdir()
        capsys.readouterr()
        for _ in range(7):
            assert (await asked(server, "POST", f"/tasks/{TASK}/pause", TOKEN))[0] == 200
            await asked(server, "POST", f"/tasks/{TASK}/pause", WRONG)
        told = lines(capsys)
        assert of("audit-log-failed", told)
        done = [line for line in of("operator", told) if line["status"] == 200]
        assert [line["action"].rpartition("/")[2] for line in done] == ["pause"] * 7
        assert {line["who"] for line in done} == {server.service.core.pseudonyms.operator(TOKEN)}
        settings = server.settings.model_copy(update={"audit_log": folder / "audit"})
    with pytest.raises(ConfigurationError) as caught:
        Service(settings)
    assert caught.value.reason == "audit-log-unwritable"


async def test_of_requests_without_a_token_the_file_has_a_few_lines_and_a_count(
    tmp_path: Path,
) -> None:
    file = tmp_path / "audit.jsonl"
    async with served(tmp_path / "data", spec(), audit_log=file) as server:
        async with aiohttp.ClientSession() as http:
            for _ in range(200):
                async with http.get(f"{server.url}/v1/operator/tasks") as answer:
                    assert answer.status == 401
        await asked(server, "POST", f"/tasks/{TASK}/pause", TOKEN)
    told = written(file)
    missing = [line for line in told if line.get("reason") == "token-missing"]
    assert len(missing) == SAME_MAX
    assert told[-2]["status"] == 200
    assert told[-1] == {
        "timestamp": told[-1]["timestamp"],
        "event": "lines-left-out",
        "count": 200 - SAME_MAX,
        "seconds": told[-1]["seconds"],
        "of_remote": "127.0.0.1",
        "of_reason": "token-missing",
    }


def test_a_line_that_came_into_the_file_in_part_is_told_and_spoils_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, write = tmp_path / "audit", os.write
    log = AuditLog(file, lambda: 0.0)
    logs.configure()
    monkeypatch.setattr(os, "write", lambda at, data: write(at, data[: len(data) // 2]))
    log.write(action("first"))
    monkeypatch.undo()
    log.write(action("second"))
    log.write(action("third"))
    (told,) = of("operator", lines(capsys))
    assert told["action"] == "first"
    _, second, third = file.read_text().splitlines()
    assert [json.loads(line)["action"] for line in (second, third)] == ["second", "third"]


def test_a_pipe_that_nobody_reads_is_told_and_holds_nobody_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "audit"

    def reader() -> int:
        return os.open(file, os.O_RDONLY | os.O_NONBLOCK)

    os.mkfifo(file)
    rescue = Timer(10.0, reader)
    rescue.daemon = True  # a log that waits fails this test instead of holding it up
    rescue.start()
    with pytest.raises(ConfigurationError, match="audit-log-unwritable"):
        AuditLog(file, lambda: 0.0)

    reading = reader()
    log = AuditLog(file, lambda: 0.0)
    log.write(action("read"))
    assert json.loads(os.read(reading, 1_000))["action"] == "read"
    logs.configure()
    os.close(reading)
    log.write(action("unread"))
    rescue.cancel()
    (told,) = of("operator", lines(capsys))
    assert told["action"] == "unread"


async def test_an_address_with_many_wrong_tokens_is_slowed_down_and_others_are_not(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, spec(), behind_proxy=True) as server:
        attacker = {"X-Forwarded-For": "192.0.2.1, 198.51.100.7"}  # the last is the proxy's word
        for _ in range(10):
            assert (await asked(server, "GET", "/tasks", WRONG, **attacker))[0] == 403
        status, headers = await asked(server, "GET", "/tasks", WRONG, **attacker)
        assert (status, headers["Retry-After"]) == (429, "6")
        spoofed = {"X-Forwarded-For": "203.0.113.9, 198.51.100.7"}
        assert (await asked(server, "GET", "/tasks", WRONG, **spoofed))[0] == 429
        assert (await asked(server, "GET", "/tasks", TOKEN, **attacker))[0] == 200
        other = {"X-Forwarded-For": "198.51.100.8"}
        assert (await asked(server, "GET", "/tasks", WRONG, **other))[0] == 403


class Only:
    """One token, as the settings have it."""

    def __init__(self, right: str) -> None:
        self._right = right

    def admits(self, token: str) -> bool:
        return token == self._right


def test_a_wrong_token_is_allowed_again_after_a_while() -> None:
    now = [0.0]
    access = OperatorAccess(Only(TOKEN), lambda: now[0])  # type: ignore[arg-type]

    def reason(token: str) -> str | None:
        try:
            access.require(token, "a")
        except Refusal as error:
            return error.reason
        return None

    assert [reason(WRONG) for _ in range(11)] == ["operator-token"] * 10 + ["operator-token-tries"]
    assert reason(TOKEN) is None  # others share the address
    now[0] = 6.0
    assert reason(TOKEN) is None  # costs no try
    assert [reason(WRONG) for _ in range(2)] == ["operator-token", "operator-token-tries"]
    now[0] = 1_000.0
    assert [reason(WRONG) for _ in range(11)] == ["operator-token"] * 10 + ["operator-token-tries"]


def test_a_short_token_is_not_found_by_showing_very_many() -> None:
    now = [0.0]
    access = OperatorAccess(Only("short-one"), lambda: now[0])  # type: ignore[arg-type]
    for _ in range(10):
        with pytest.raises(Refusal, match=r"\[operator-token\]"):
            access.require(WRONG, "a")
    with pytest.raises(Refusal) as caught:
        access.require("short-one", "a")
    assert (caught.value.reason, caught.value.retry_after_s) == ("operator-token-tries", 6)
    access.require("short-one", "b")
    now[0] = 6.0
    access.require("short-one", "a")
    access.require("short-one", "a")  # a right one costs no try
