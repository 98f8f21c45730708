"""The admin port: which pages are answered when, to whose browser, and what the audit log tells."""

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace

import aiohttp
import msgspec
import pytest

from aggregator import measures
from aggregator.errors import DatabaseAway, Refusal
from aggregator.http import admin_port
from aggregator.http.admin_port import AdminPort
from aggregator.http.dashboard.sites import demand_known_host
from aggregator.settings.options import Settings
from tests.kits.scraping import admin
from tests.kits.service import TASK, TOKEN, served, spec
from tests.kits.walls import until

PAUSE = f"/tasks/{TASK}/pause"
URLENCODED = "application/x-www-form-urlencoded"


@pytest.fixture
async def server(tmp_path):
    names = " dash.example,b.example"
    file = tmp_path / "audit.log"
    async with served(tmp_path / "data", spec(), audit_log=file, admin_names=names) as running:
        yield running


@asynccontextmanager
async def own_thread(server):
    port = AdminPort(server.service, server.settings.model_copy(update={"admin_port": 0}))
    host, number = await port.start()
    try:
        yield f"http://{host}:{number}"
    finally:
        await port.stop()


async def asked(url, path, method="GET", **more):
    if method == "POST":
        more.setdefault("data", {"token": TOKEN})
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, url + path, allow_redirects=False, **more) as answer,
    ):
        return answer.status, await answer.text()


def told(server):
    """(status, reason) of each act in the audit log."""
    lines = [msgspec.json.decode(line) for line in server.settings.audit_log.open("rb")]
    acts = [line for line in lines if line["action"].startswith("POST /tasks/")]
    return [(line["status"], line.get("reason")) for line in acts]


async def test_before_the_start_and_after_the_stop_no_page_reads_or_acts(server, monkeypatch):
    reads = []

    async def read():
        reads.append("read")

    async with own_thread(server) as url:
        server.service.ready = False
        with monkeypatch.context() as patch:
            patch.setattr(server.service.measures, "_from_database", read)
            patch.setattr(measures, "CACHED_S", 0.0)
            for path in ("/", f"/tasks/{TASK}", "/ledger", "/live/", PAUSE):
                status, said = await asked(url, path)
                assert (status, '"starting"' in said) == (503, True), path
            assert (await asked(url, PAUSE, "POST"))[0] == 503
            assert (await asked(url, "/healthz"))[0] == 200
            assert (await asked(url, "/readyz"))[0] == 503
            status, metrics = await asked(url, "/metrics")
            assert (status, "secagg_ready 0.0" in metrics) == (200, True)
        assert not reads
        server.service.ready = True
        assert (await server.view())["state"] == "open"


async def test_an_act_that_the_stop_overtakes_is_not_done(server, monkeypatch):
    shown = server.service.tasks.shown

    async def stopped_meanwhile(name):
        task = await shown(name)
        server.service.ready = False
        return task

    monkeypatch.setattr(server.service.tasks, "shown", stopped_meanwhile)
    async with admin(server) as url:
        assert (await asked(url, PAUSE, "POST"))[0] == 503
    server.service.ready = True
    assert (await server.view())["state"] == "open"
    assert told(server) == [(503, "starting")]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DatabaseAway("the database", OSError("gone")), (503, "database-away")),
        (ZeroDivisionError("a fault of ours"), (500, "internal")),
    ],
)
async def test_an_act_whose_answer_is_a_failure_is_told(server, monkeypatch, error, line):
    switch = server.service.tasks.switch

    async def fails_behind_its_commit(task, state):
        await switch(task, state)
        raise error

    monkeypatch.setattr(server.service.tasks, "switch", fails_behind_its_commit)
    async with admin(server) as url:
        assert (await asked(url, PAUSE, "POST"))[0] == line[0]
    assert (await server.view())["state"] == "paused"
    assert told(server) == [line]


async def test_an_act_while_the_database_is_away_is_told(server, monkeypatch):
    async def away(*_):
        raise DatabaseAway("the database", OSError("gone"))

    monkeypatch.setattr("aggregator.store.tasks.is_deleted", away)
    async with admin(server) as url:
        assert (await asked(url, PAUSE, "POST"))[0] == 503
    assert told(server) == [(503, "database-away")]


async def test_an_act_goes_on_and_is_told_though_nobody_waits_for_it(server, monkeypatch):
    switch, on = server.service.tasks.switch, asyncio.Event()

    async def slow(task, state):
        await switch(task, state)
        await on.wait()

    monkeypatch.setattr(server.service.tasks, "switch", slow)
    monkeypatch.setattr(admin_port, "_ANSWER_S", 0.2)
    async with own_thread(server) as url:
        assert (await asked(url, PAUSE, "POST"))[0] == 503
        assert told(server) == []
        on.set()
        await until(lambda: told(server))
    assert told(server) == [(303, None)]


async def test_the_stop_ends_an_act_that_is_under_way_and_tells_it(server, monkeypatch):
    begun = asyncio.Event()

    async def without_end(task, state):
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(server.service.tasks, "switch", without_end)
    async with own_thread(server) as url:
        asking = asyncio.create_task(asked(url, PAUSE, "POST"))
        await asyncio.wait_for(begun.wait(), 20)
        await server.service.driver.close()
        await until(lambda: told(server))
        assert told(server) == [("broken off", None)]
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


MULTIPART = "multipart/form-data"


@pytest.mark.parametrize(
    ("headers", "body", "line"),
    [
        ({"Content-Type": f"{URLENCODED}; charset=nope"}, b"token=a", (400, "form-malformed")),
        ({"Content-Type": URLENCODED}, b"token=\xff\xfe", (400, "form-malformed")),
        ({"Content-Type": MULTIPART}, b"abc", (400, "form-malformed")),
        ({"Content-Type": f"{MULTIPART}; boundary=x"}, b"abc", (400, "form-malformed")),
        ({"Content-Type": URLENCODED}, b"a" * 20_000, (413, "body-too-large")),
        ({"Origin": "http://[::1"}, b"", (403, "form-of-another-site")),
    ],
)
async def test_a_form_that_cannot_be_read_is_refused_and_told(server, headers, body, line):
    async with own_thread(server) as url:
        status, said = await asked(url, PAUSE, "POST", headers=headers, data=body)
        assert (status, line[1] in said) == (line[0], True)
    assert told(server) == [line]


async def test_a_name_that_anybody_led_here_has_no_pages(server):
    async with admin(server) as url:
        ask = partial(asked, url)
        for path in ("/", "/live/", PAUSE, "/dashboard.js"):
            status, said = await ask(path, headers={"Host": "evil.example:8081"})
            assert (status, "host-unknown" in said) == (403, True), path
        own = {"Host": "evil.example", "Origin": "http://evil.example"}
        assert (await ask(PAUSE, "POST", headers=own))[0] == 403
        assert (await server.view())["state"] == "open"
        known = ("localhost", "LocalHost:81", "192.0.2.1:81", "[2001:db8::1]:81", "dash.example")
        for host in (*known, "B.example.:8081"):
            assert (await ask("/", headers={"Host": host}))[0] == 200, host
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await ask(path, headers={"Host": "secagg-0:8081"}))[0] == 200


def test_no_name_is_known_that_is_not_set():
    for host in ("", ":80", "evil.example"):
        request = SimpleNamespace(headers={"Host": host}, scheme="http")
        with pytest.raises(Refusal, match="not known by this name"):
            demand_known_host(request, Settings())
    tls = SimpleNamespace(headers={"Host": "any.example"}, scheme="https")
    demand_known_host(tls, Settings())  # the certificate has the names
    demand_known_host(SimpleNamespace(headers={}, scheme="http"), Settings())


async def test_another_site_opens_no_stream(server):
    gauge = server.service.core.metrics.dashboard_streams._value
    async with admin(server) as url, aiohttp.ClientSession() as http:
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
            async with http.get(f"{url}/live/", headers=headers) as answer:
                assert answer.status == 403
                assert "stream-of-another-site" in await answer.text()
            assert gauge.get() == 0
        own = {"Sec-Fetch-Site": "same-origin"}
        async with http.get(f"{url}/live/", headers=own) as answer:
            assert answer.status == 200
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


async def test_a_task_called_ledger_does_not_wait_for_the_ledger(server, monkeypatch):
    rendering, done = asyncio.Event(), asyncio.Event()

    async def without_end():
        rendering.set()
        await asyncio.Event().wait()

    async def form():
        done.set()

    monkeypatch.setattr(server.service.ledger, "publish", without_end)
    async with asyncio.timeout(5):
        await rendering.wait()
        server.service.watch._once("ledger", form)
        await done.wait()
