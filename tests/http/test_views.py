"""The operator's interface is typed from the database's column to the command line."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp.test_utils
import msgspec
import pytest
from aiohttp import web
from nacl.signing import SigningKey

from aggregator import views
from aggregator.http.routes.openapi import document
from secagg_cli.operator.client import Operator
from secagg_cli.output import CommandError
from tests.kits.service import PARTNER, TASK, TOKEN, Served, devices, run, served, spec

TOKEN_DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
STORED = Path(__file__).parents[1] / "vectors" / "stored-0453a63" / "service" / "secagg.db.gz"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path, spec()) as running:
        yield running


async def released_charged_and_struck(server: Served) -> None:
    """A release, then a cohort that is charged and strikes two devices."""
    await run(devices(server, 4))
    fleet = devices(server, 4)
    for device in fleet[:2]:
        device.stop_before = "header"
    await run(fleet)
    await server.until(lambda view: view["charges"] == 2 and view["cohort"] is None)


async def test_every_answer_is_its_view_and_nothing_beside_it(server: Served) -> None:
    await released_charged_and_struck(server)
    key = "ab" * 32
    partner = bytes(SigningKey(PARTNER.reveal()).verify_key)
    other = bytes(SigningKey(bytes(32)).verify_key)
    asked: list[tuple[str, str, Any, type]] = [
        ("GET", "/tasks", None, views.TaskList),
        ("GET", f"/tasks/{TASK}", None, views.TaskView),
        ("POST", f"/tasks/{TASK}/pause", None, views.TaskView),
        ("POST", f"/tasks/{TASK}/resume", None, views.TaskView),
        ("POST", "/plans", spec(task="another"), views.TaskPlanned),
        ("POST", "/tasks", spec(task="another"), views.TaskCreated),
        ("POST", "/tasks/another/close", None, views.TaskView),
        ("POST", "/tasks/another/delete", None, views.TaskDeleted),
        ("POST", "/token", {"digest": TOKEN_DIGEST, "overlap_s": 9.0}, views.TokenRotated),
        ("POST", f"/devices/{key}/ban", {"note": "n"}, views.BanMade),
        ("GET", "/devices", None, views.DeviceList),
        ("POST", "/partners", {"name": "p", "key": partner}, views.PartnerAdded),
        ("POST", "/partners", {"name": "q", "key": other}, views.PartnerAdded),
        ("POST", f"/partners/{other.hex()}/remove", None, views.PartnerRemoved),
        ("GET", "/partners", None, views.PartnerList),
    ]
    for method, path, body, kind in asked:
        status, found = await server.operator(method, path, body)
        assert status == 200, found
        view = msgspec.json.decode(json.dumps(found), type=kind)
        assert json.loads(msgspec.json.encode(view)) == found, path
    _, view = await server.operator("GET", f"/tasks/{TASK}")
    assert [(r["outcome"], r["struck"]) for r in view["releases"]] == [
        ("released", 0),
        ("charged", 2),
    ]


async def test_the_command_line_has_views_too(server: Served) -> None:
    await released_charged_and_struck(server)
    operator = Operator(server.url, TOKEN)
    task = await asyncio.to_thread(operator.task, TASK)
    assert isinstance(task, views.TaskView)
    assert [entry.outcome for entry in task.releases] == ["released", "charged"]
    assert task.releases[1].lacking == "2 of 4 vectors came; at least 3 are needed"
    (row,) = await asyncio.to_thread(operator.tasks)
    assert row == views.TaskRow(task=TASK, state="open", version=1, charges=2)
    found = await asyncio.to_thread(operator.devices)
    assert [struck.strikes for struck in found.strikes] == [1, 1]
    made = await asyncio.to_thread(operator.ban, b"\x01" * 32, "why")
    assert (made.seen, made.note) == (False, "why")
    created = await asyncio.to_thread(operator.create_task, spec(task="another"))
    assert created.task == "another"
    assert created.warnings


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[" * 100_000, b'{"tasks": [{"task": 1}]}'])
async def test_an_answer_that_is_no_view_is_told(body: bytes) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body)

    app = web.Application()
    app.router.add_get("/v1/operator/tasks", answer)
    async with aiohttp.test_utils.TestServer(app) as between:
        operator = Operator(str(between.make_url("/")), TOKEN)
        with pytest.raises(CommandError, match="is not a TaskList") as caught:
            await asyncio.to_thread(operator.tasks)
    assert caught.value.reason == "answer-malformed"


def test_charges_that_older_software_stored_are_shown() -> None:
    connection = sqlite3.connect(":memory:")
    connection.deserialize(gzip.decompress(STORED.read_bytes()))
    rows = [json.loads(row[0]) for row in connection.execute("SELECT view FROM releases")]
    assert rows
    for row in rows:
        assert "lacking" not in row
        shown = json.loads(msgspec.json.encode(msgspec.convert(row, views.ReleaseView)))
        assert {name: shown[name] for name in row} == row
        del row["noise"]  # the first ones had not even this
        assert msgspec.convert(row, views.ReleaseView).noise is None


def test_a_reader_passes_over_members_to_come() -> None:
    row = {"task": "t", "state": "open", "version": 1, "charges": 1, "colour": "red"}
    assert msgspec.convert(row, views.TaskRow).task == "t"


def test_the_openapi_document_describes_every_json_body() -> None:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            for status, answer in operation["responses"].items():
                for media, content in answer.get("content", {}).items():
                    if "json" in media:
                        assert "$ref" in content["schema"], (method, path, status)
    schemas = document()["components"]["schemas"]
    assert {"TaskView", "ReleaseView", "TaskCreated", "DeviceList", "PrivacyStatement"} <= set(
        schemas
    )
