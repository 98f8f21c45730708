"""Planted secrets never appear in logs, database, blobs, metrics or what an operator sees."""

import asyncio
import base64
import json
import sqlite3

import aiohttp
import numpy as np
from aiohttp import web

from aggregator import logs
from aggregator.http.app import build_admin_app
from secagg import messages
from secagg.secret import Secret
from tests.kits.service import TOKEN, Device, devices, finished, run, served, spec


def forms(secret: bytes) -> list[bytes]:
    """The ways in which bytes leak into text and files."""
    encoded = base64.b64encode(secret)
    return [secret, secret.hex().encode(), encoded[:-4], base64.urlsafe_b64encode(secret)[:-4]]


def found_in(data: bytes, secrets: dict[str, bytes]) -> list[str]:
    return [name for name, secret in secrets.items() if any(f in data for f in forms(secret))]


async def other_ports(server) -> bytes:
    runner = web.AppRunner(build_admin_app(server.service))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    seen = b""
    async with aiohttp.ClientSession() as http:
        for path in ("/", "/tasks/statistics", "/metrics", "/healthz", "/readyz"):
            async with http.get(f"http://127.0.0.1:{runner.addresses[0][1]}{path}") as answer:
                assert answer.status == 200, path
                seen += await answer.read()
    await runner.cleanup()
    return seen


async def test_a_whole_cohort_leaves_none_of_its_secrets_behind(tmp_path, capsys):
    rng = np.random.default_rng(7)
    async with served(tmp_path, spec(), log_level="DEBUG") as server:
        fleet = [Device(server, n, rng.uniform(-9, 9, 40), chunk=64) for n in range(4)]
        fleet.append(Device(server, 9, rng.uniform(-9, 9, 40), stop_before="advert"))
        odd = fleet[1]
        await server.operator("GET", "/tasks/none")
        post = odd.post

        async def post_noise_too(message):
            await odd.request("POST", f"{odd.session}/messages", data=message[:-5])
            return await post(message)

        odd.post = post_noise_too
        assert finished(await run(fleet)) == 4

        secrets = {"operator token": TOKEN.encode(), "task key": task_key(server)}
        for device in fleet[:4]:
            secrets[f"value {device.number}"] = device.value.tobytes()
            secrets[f"chunk {device.number}"] = device.payload[10:42]
            secrets[f"identity {device.number}"] = device.seed.reveal()
            secrets[f"access {device.number}"] = (await device.token()).encode()[200:260]
            unmask, _ = messages.peek(device.sent[-1], messages.Unmask)
            secrets[f"share {device.number}"] = unmask.shares[0].share
        shown = json.dumps(await server.view()).encode() + await other_ports(server)
        with sqlite3.connect(tmp_path / "secagg.db") as database:
            rows = database.execute("SELECT payload FROM cohort_events").fetchall()
        assert rows == []

    captured = capsys.readouterr()
    assert '"phase": "unmasking"' in captured.err  # the log was there to be searched
    assert found_in((captured.out + captured.err).encode(), secrets) == []
    assert found_in(shown, secrets) == []
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.suffix == ".db" for file in files)
    for file in files:
        if file.parent.name != "keys":
            assert found_in(file.read_bytes(), secrets) == [], file
    for folder in ("blobs/uploads", "blobs/partial"):
        assert list((tmp_path / folder).glob("*")) == []


def task_key(server) -> bytes:
    return server.service.core.keys.task.reveal()


async def test_the_keys_are_readable_by_their_owner_only(tmp_path):
    async with served(tmp_path, spec()):
        for file in (*(tmp_path / "keys").iterdir(), tmp_path / "replica.id"):
            assert file.stat().st_mode & 0o077 == 0, file


async def test_a_vector_is_kept_only_until_it_is_in_the_sum(tmp_path):
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        last_one = asyncio.Event()

        async def hold(name):
            if name == "vector":
                await last_one.wait()

        fleet[3].hold = hold
        running = [asyncio.create_task(device.run()) for device in fleet]
        await server.until(lambda _: len(in_sum(server)) == 3)
        await server.until(lambda _: not list((tmp_path / "blobs/uploads").rglob("*-*")))
        kept = [file for file in tmp_path.rglob("*") if file.is_file()]
        for device in fleet[:3]:
            secrets = {"chunk": device.payload[10:42]}
            assert [f for f in kept if found_in(f.read_bytes(), secrets)] == []
        assert len(list((tmp_path / "blobs/partial").rglob("*-*"))) == 1  # one sum, one generation
        last_one.set()
        assert finished(await asyncio.gather(*running)) == 4


def in_sum(server):
    live = list(server.service.driver.live.values())
    return getattr(live[0].cohort.state, "added", ()) if live else ()


def test_logs_redact_what_slips_through(capsys):
    logs.get_logger("test").info(
        "event",
        token="t0ken",
        data=b"bytes",
        nested=Secret(b"s" * 32),
        phase="ok",
        deep={"x": b"y"},
    )
    line = json.loads(capsys.readouterr().err)
    assert line["token"] == line["data"] == line["nested"] == "<redacted>"
    assert line["deep"] == {"x": "<redacted>"}
    assert line["phase"] == "ok"
