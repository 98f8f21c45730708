"""What people and tools read: dashboard, metrics, OpenAPI, ledger, model downloads, long polls."""

import asyncio
import hashlib
import re

import aiohttp
import alembic.autogenerate
import alembic.migration
import msgspec
import pytest
import sqlalchemy as sa

from aggregator.http.dashboard.charts import steps
from aggregator.http.routes.openapi import document
from aggregator.store.schema import metadata
from dp.ledger.verification import verify_ledger
from secagg import http_api
from tests.kits.scraping import admin
from tests.kits.service import (
    TASK,
    Device,
    current_sum,
    devices,
    finished,
    one_hot,
    run,
    served,
    spec,
)


@pytest.fixture
async def server(tmp_path):
    async with served(tmp_path, spec()) as running:
        yield running


async def fetch(url, **headers):
    async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
        return answer.status, await answer.read(), answer.headers


async def test_the_operators_port_shows_health_metrics_and_every_release(server):
    async with admin(server) as url:
        assert ">no noise<" in (await fetch(f"{url}/"))[1].decode()
    fleet = devices(server, 4)
    fleet[1].stop_before = "vector"
    assert finished(await run(fleet)) == 3
    await server.until(lambda _: not server.service.driver.live)
    async with admin(server) as url:
        assert (await fetch(f"{url}/healthz"))[0] == 200
        assert (await fetch(f"{url}/readyz"))[0] == 200
        _, page, headers = await fetch(f"{url}/")
        assert TASK in page.decode()
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        _, page, _ = await fetch(f"{url}/tasks/{TASK}")
        text = page.decode()
        assert "<svg" in text
        assert "Norm of the released sum" in text
        assert re.search(r">released</td>", text)
        assert (await fetch(f"{url}/tasks/none"))[0] == 404
        _, body, _ = await fetch(f"{url}/metrics")
        metrics = body.decode()
        released = f'secagg_cohorts_total{{outcome="released",reason="",task="{TASK}"}} 1.0'
        assert released in metrics
        assert f'secagg_devices_total{{fate="dropped",task="{TASK}"}} 1.0' in metrics
        assert "secagg_open_cohorts 0.0" in metrics
        # The task adds no noise: that is not an epsilon of 0.
        assert "secagg_epsilon{" not in metrics
        assert "The task adds no noise: no epsilon bounds what its sums show." in text
        assert ">no noise</td>" in text
        assert "no noise" in (await fetch(f"{url}/"))[1].decode()
        server.service.ready = False
        assert (await fetch(f"{url}/readyz"))[0] == 503
        server.service.ready = True


async def test_health_and_dashboard_are_not_on_the_public_port(server):
    for path in ("/", "/metrics", "/healthz", f"/tasks/{TASK}"):
        assert (await fetch(server.url + path))[0] == 404


async def test_the_openapi_document_lists_every_route_and_only_those(server):
    status, body, _ = await fetch(f"{server.url}/v1/openapi.json")
    assert status == 200
    described = {
        (method.upper(), path)
        for path, methods in msgspec.json.decode(body)["paths"].items()
        for method in methods
    }
    served_routes = {
        (route.method, route.resource.canonical)
        for route in server.app.router.routes()
        if route.method != "HEAD"
    }
    assert described == served_routes - {("GET", "/v1/openapi.json")}


def test_every_reference_of_the_openapi_document_resolves():
    text = msgspec.json.encode(document()).decode()
    names = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert {"Offer", "Problem", "TaskSpec", "UploadState"} <= names
    assert names <= set(document()["components"]["schemas"])


async def test_the_ledger_is_public_and_verifies_over_http(server):
    assert finished(await run(devices(server, 4))) == 4
    paths: dict[str, bytes | None] = {}

    def read(path):
        return paths.get(path)

    async with aiohttp.ClientSession() as http:
        for path in ("checkpoint", "tile/0/000.p/2", "tile/entries/000.p/2"):
            async with http.get(f"{server.url}/ledger/{path}") as answer:
                assert answer.status == 200
                paths[path] = await answer.read()
        for path in ("tile/0/001", "tile/../../keys/task.key", "tile/%2e%2e/%2e%2e/secagg.db"):
            async with http.get(f"{server.url}/ledger/{path}") as answer:
                assert answer.status == 404
    _, info, _ = await fetch(f"{server.url}/v1/server")
    verifier = msgspec.json.decode(info, type=http_api.ServerInfo).ledger_verifier
    result = verify_ledger(read, verifier)
    assert result.verified, result.problems
    assert result.releases == 1


async def test_a_model_download_resumes_where_it_broke(server):
    device = Device(server, 0, one_hot(0))
    async with aiohttp.ClientSession() as device.http:
        offer = await device.json("GET", f"/v1/tasks/{TASK}/offer", http_api.Offer)
        path = f"/v1/models/{offer.model.digest.hex()}"
        status, whole = await device.request("GET", path)
        assert (status, len(whole)) == (200, offer.model.size_bytes)
        assert hashlib.sha256(whole).digest() == offer.model.digest
        status, rest = await device.request("GET", path, headers={"Range": "bytes=100-"})
        assert (status, rest) == (206, whole[100:])


async def test_an_offer_waits_for_the_next_version_and_no_longer(server):
    device = Device(server, 9, one_hot(9))
    async with aiohttp.ClientSession() as device.http:
        path = f"/v1/tasks/{TASK}/offer?after_version=0"
        same = await device.json("GET", f"{path}&wait_s=0.05", http_api.Offer)
        assert same.model.version == 0
        waiting = asyncio.create_task(device.json("GET", f"{path}&wait_s=30", http_api.Offer))
        assert finished(await run(devices(server, 4))) == 4
        offer = await waiting
        assert (offer.model.version, offer.releases, offer.state) == (1, 1, "open")
        assert offer.model.opened_at > same.model.opened_at
    assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 1, 0]


async def test_a_second_task_of_the_same_name_and_a_partners_key_twice(server):
    status, problem = await server.operator("POST", "/tasks", spec())
    assert (status, problem["reason"]) == (409, "task-exists")
    _, known = await server.operator("GET", "/partners")
    assert len(known["partners"]) == 1
    key = bytes.fromhex(known["partners"][0]["partner_key"])
    assert (await server.operator("POST", "/partners", {"name": "p", "key": key}))[0] == 200
    status, problem = await server.operator("POST", "/partners", {"name": "q", "key": key})
    assert (status, problem["reason"]) == (409, "partner-exists")
    status, problem = await server.operator("POST", "/partners", {"name": "q", "key": b"short"})
    assert (status, problem["reason"]) == (422, "partner-key")
    assert (await server.view())["task"] == TASK


async def test_the_migrations_make_exactly_the_schema(server):
    def compare(connection: sa.Connection):
        context = alembic.migration.MigrationContext.configure(connection)
        return alembic.autogenerate.compare_metadata(context, metadata)

    async with server.service.core.database.read() as connection:
        assert await connection.run_sync(compare) == []


def test_a_chart_has_a_bar_for_each_value_axes_with_units_and_an_escaped_title():
    chart = steps("<b>", [1.0, None, 2.0], limit=4.0, unit="devices")
    assert chart.count('class="bar"') == 2
    assert chart.count('class="limit"') == 1
    assert ">devices</text>" in chart
    assert ">charge</text>" in chart
    assert ">dashed: budget 4</text>" in chart
    assert "<b>" not in chart
    assert steps("empty", [None]) == ""


async def test_the_operators_page_says_why_a_cohort_failed_and_whom_it_cost(tmp_path, capfd):
    async with served(tmp_path, spec()) as server, admin(server) as url:
        fleet = devices(server, 4)
        for device in fleet[:2]:
            device.stop_before = "header"
        await run(fleet)
        for device in (again := devices(server, 4)):
            device.stop_before = "deals"
        await asyncio.gather(*(device.run() for device in again))
        server.ahead_s += 61.0
        await server.until(lambda view: view["aborted"] == 1)
        page = (await fetch(f"{url}/tasks/{TASK}"))[1].decode()
        lacked = "2 of 4 vectors came; at least 3 are needed"
        assert f"charged: too-few-vectors; fault: devices; {lacked}; 2 struck</td>" in page
        assert ">ended: too-few-dealers</td>" in page
        lines = [msgspec.json.decode(line) for line in capfd.readouterr().err.splitlines()]
        told = [
            (line["event"], line.get("devices") or line.get("lacking"))
            for line in lines
            if line["event"] in ("devices-struck", "cohort-ended")
        ]
        assert told == [
            ("devices-struck", 2),
            ("cohort-ended", lacked),
            ("cohort-ended", "0 of 4 devices dealt; at least 3 are needed"),
        ]
