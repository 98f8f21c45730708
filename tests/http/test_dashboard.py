"""The dashboard without a browser: streams, what is not known, and who may act."""

import asyncio
import re
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from nacl.signing import SigningKey

from aggregator.errors import DatabaseAway
from aggregator.http.admin_port import AdminPort
from aggregator.http.dashboard import live
from aggregator.http.dashboard.live import STREAMS_MAX, Shown
from aggregator.store import seen
from tests.kits.scraping import admin
from tests.kits.service import (
    TASK,
    TOKEN,
    devices,
    finished,
    run,
    served,
    spec,
)


@pytest.fixture
async def server(tmp_path):
    async with served(tmp_path, spec()) as running:
        yield running


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(live, "LOOK_S", 0.02)
    monkeypatch.setattr(live, "LOOK_MAX_S", 0.02)


async def text_of(url):
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        return answer.status, await answer.text()


async def events(answer):
    """(name, data) of each event of a stream."""
    name = ""
    async for line in answer.content:
        kind, _, value = line.decode().rstrip("\n").partition(": ")
        if kind == "event":
            name = value
        elif kind == "data":
            yield name, msgspec.json.decode(value)


async def until(answer, wanted):
    async with asyncio.timeout(20):
        async for name, data in events(answer):
            if wanted(name, data):
                return data
    raise AssertionError("the stream has ended")


async def test_a_stream_sends_the_regions_that_have_changed(server, quick):
    async with admin(server) as url, watched(f"{url}/live/tasks/{TASK}") as answer:
        assert answer.content_type == "text/event-stream"
        first = [name async for name, _ in first_events(answer, "now")]
        assert first.count("region") == 8
        await server.operator("POST", f"/tasks/{TASK}/pause")
        told = await until(answer, lambda name, told: name == "region" and told["id"] == "head")
        assert "paused" in told["html"]


@asynccontextmanager
async def watched(url):
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        yield answer


async def first_events(answer, last):
    async for name, data in events(answer):
        yield name, data
        if name == last:
            return


async def test_streams_are_counted_bounded_and_end_with_the_service(server, quick):
    gauge = server.service.core.metrics.dashboard_streams._value
    async with admin(server) as url, aiohttp.ClientSession() as http:
        opened = [await http.get(f"{url}/live/") for _ in range(STREAMS_MAX)]
        assert gauge.get() == STREAMS_MAX
        async with http.get(f"{url}/live/ledger") as refused:
            assert refused.status == 503
            assert refused.headers["Retry-After"] == "15"
            assert (await refused.json(content_type=None))["reason"] == "streams-full"
        assert (await text_of(f"{url}/"))[0] == 200
        server.service.drain()
        for answer in opened:
            async with asyncio.timeout(20):
                await answer.read()  # to its end
        assert gauge.get() == 0
        async with http.get(f"{url}/live/") as refused:
            assert (await refused.json(content_type=None))["reason"] == "draining"


async def test_a_stream_without_figures_says_so_and_goes_on(server, quick, monkeypatch):
    async with admin(server) as url, watched(f"{url}/live/") as answer:
        await until(answer, lambda name, _: name == "now")

        async def away(_):
            raise DatabaseAway("sqlite", OSError("gone"))

        with monkeypatch.context() as patch:
            patch.setattr(seen, "failed_in_a_row", away)
            told = await until(answer, lambda name, _: name == "trouble")
        assert told == {"said": "The database does not answer."}
        await until(answer, lambda name, _: name == "now")


async def test_however_many_look_a_page_is_computed_once_and_seldom_if_it_is_dear():
    now, computed = [0.0], []

    async def compute():
        computed.append(now[0])
        now[0] += 0.5  # seconds that it takes
        return {"a": "b"}

    shown = Shown(lambda: now[0])
    await asyncio.gather(*(shown.regions("/", compute) for _ in range(5)))
    assert computed == [0.0]
    now[0] = 10.4
    await shown.regions("/", compute)
    assert computed == [0.0]
    now[0] = 10.6
    await shown.regions("/", compute)
    assert computed == [0.0, 10.6]


async def test_the_page_shows_how_far_each_step_is_and_whom_it_waits_for(server):
    gate = asyncio.Event()

    async def hold(point):
        if point == "vector":
            await gate.wait()

    fleet = devices(server, 4)
    fleet[3].hold = hold
    running = asyncio.create_task(run(fleet))
    masking = {"phase": "masking", "done": 3}
    await server.until(lambda view: view["cohort"] and masking.items() <= view["cohort"].items())
    async with admin(server) as url:
        page = (await text_of(f"{url}/tasks/{TASK}"))[1]
        for step, came in (("sharing", "4 of 4"), ("checking", "4 of 4"), ("masking", "3 of 4")):
            assert f'aria-label="{step}: {came} devices"' in page
        assert page.count("<span>not yet</span>") == 2
        assert "1 vector is on the way." in page
        late = server.service.core.pseudonyms.device(identity_of(fleet[3]))
        assert f"<li><code>{late}</code></li>" in page
        listed = (await text_of(f"{url}/devices"))[1]
        assert late in listed
        assert identity_of(fleet[3]).hex() not in listed + page
    gate.set()
    await running


def identity_of(device):
    return bytes(SigningKey(device.seed.reveal()).verify_key)


async def test_what_is_not_known_is_no_zero(server):
    async with admin(server) as url:
        page = (await text_of(f"{url}/tasks/{TASK}"))[1]
        assert "When the budget ends is not known before the second charge." in page
        assert "<svg" not in page
        assert "0.0" not in re.sub(r"127\.0\.0\.1", "", page)
        listed = (await text_of(f"{url}/devices"))[1]
        assert "not lately" in listed


async def act(url, name, headers=None, **form):
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"{url}/tasks/{TASK}/{name}", data=form, headers=headers, allow_redirects=False
        ) as answer,
    ):
        return answer.status, await answer.text()


async def test_only_who_has_the_token_pauses_and_the_audit_log_tells(server, capfd):
    async with admin(server) as url:
        status, page = await act(url, "pause", token="wrong-token")
        assert status == 403
        assert 'role="alert"' in page
        assert "[operator-token]" in page
        assert "wrong-token" not in page
        assert (await act(url, "pause"))[0] == 403
        assert (await server.view())["state"] == "open"
        assert (await act(url, "pause", token=TOKEN))[0] == 303
        assert (await server.view())["state"] == "paused"
        assert (await act(url, "resume", token=TOKEN))[0] == 303
        assert (await server.view())["state"] == "open"
        assert f'href="/tasks/{TASK}/close"' in (await text_of(f"{url}/tasks/{TASK}"))[1]
        assert (await act(url, "close", token=TOKEN))[0] == 303
        page = (await text_of(f"{url}/tasks/{TASK}"))[1]
        assert "Closed by its operator" in page
        assert 'class="act"' not in page
    lines = [msgspec.json.decode(line) for line in capfd.readouterr().err.splitlines()]
    told = [
        (line["action"], line["status"], line.get("reason"), "who" in line)
        for line in lines
        if line["event"] == "operator" and line["action"].startswith("POST /tasks/")
    ]
    names = ("pause", "resume", "close")
    pause, resume, close = (f"POST /tasks/{{task}}/{name}" for name in names)
    assert told == [
        (pause, 403, "operator-token", True),
        (pause, 403, "operator-token", False),
        (pause, 303, None, True),
        (resume, 303, None, True),
        (close, 303, None, True),
    ]


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://elsewhere.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
)
async def test_a_form_of_another_site_does_nothing_even_with_the_token(server, headers):
    async with admin(server) as url:
        status, page = await act(url, "pause", headers, token=TOKEN)
        assert status == 403
        assert "form-of-another-site" in page
        assert (await server.view())["state"] == "open"


async def test_every_page_has_a_strict_policy_and_nothing_inline(server):
    assert finished(await run(devices(server, 4))) == 4
    await server.until(lambda _: not server.service.driver.live)
    paths = ["/", "/devices", "/ledger", "/ledger/0", "/ledger/before/1"]
    paths += [f"/tasks/{TASK}{end}" for end in ("", "/manifest", "/charges/9", "/pause")]
    async with admin(server) as url, aiohttp.ClientSession() as http:
        for path in paths:
            async with http.get(url + path) as answer:
                assert answer.status == 200, path
                policy, page = answer.headers["Content-Security-Policy"], await answer.text()
            assert "unsafe" not in policy
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! src=\"/)", page), path
            assert not re.search(r'(?:src|href|action)="(?!/)', page.replace('href="#main"', ""))
        assert (await text_of(f"{url}/ledger/99"))[0] == 404


async def test_partners_names_are_text(server):
    key = bytes(SigningKey.generate().verify_key)
    await server.operator("POST", "/partners", {"name": "<img src=x onerror=a()> & co", "key": key})
    async with admin(server) as url:
        page = (await text_of(f"{url}/devices"))[1]
    assert "&lt;img src=x onerror=a()&gt; &amp; co" in page
    assert "<img" not in page


async def test_the_admin_ports_own_thread_streams_and_takes_forms(server, quick):
    settings = server.settings.model_copy(update={"admin_port": 0})
    port = AdminPort(server.service, settings)
    host, number = await port.start()
    url = f"http://{host}:{number}"
    try:
        async with watched(f"{url}/live/tasks/{TASK}") as answer:
            await until(answer, lambda name, _: name == "now")
            assert (await act(url, "pause", token=TOKEN))[0] == 303
            await until(answer, lambda name, data: name == "region" and "paused" in data["html"])
    finally:
        await port.stop()
    assert server.service.core.metrics.dashboard_streams._value.get() == 0


async def test_all_devices_are_listed_those_in_question_first(server):
    fleet = devices(server, 4)
    for device in fleet:
        device.stop_before = "deals"
    await asyncio.gather(*(device.run() for device in fleet))
    banned = identity_of(fleet[2])
    await server.operator("POST", f"/devices/{banned.hex()}/ban", {"note": ""})
    async with admin(server) as url:
        page = (await text_of(f"{url}/devices"))[1]
    names = re.findall(r'<th scope="row"><code>([0-9a-f]{16})</code>', page)
    assert len(names) == 4
    assert names[0] == server.service.core.pseudonyms.device(banned)
    assert "banned: operator" in page
