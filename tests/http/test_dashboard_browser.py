"""The dashboard in a headless Chromium: a round seen live, by keyboard, dark, and on a phone."""

import asyncio
import itertools

import pytest

from aggregator.http.dashboard import live
from dp.contracts import BudgetSpec
from tests.kits.browser import running, tab
from tests.kits.scraping import admin
from tests.kits.service import TASK, TOKEN, devices, run, served, spec

LONG = "a-task-with-a-name-as-long-as-the-rules-of-names-allow-1234567"
_CONTRAST = """
[...document.querySelectorAll('main *, header *')].filter(e => !e.closest('title, desc')
  && [...e.childNodes].some(
  n => n.nodeType === 3 && n.textContent.trim())).map(e => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = rgb(c).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  let under = e;
  while (under && (rgb(getComputedStyle(under).backgroundColor)[3] ?? 1) === 0)
    under = under.parentElement;
  const back = getComputedStyle(under || document.body).backgroundColor;
  const ink = getComputedStyle(e)[e instanceof SVGElement ? 'fill' : 'color'];
  const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), e.tagName, e.textContent.slice(0, 40)];
}).filter(([ratio]) => ratio < 4.5)
"""


@pytest.fixture(scope="module")
def browser():
    with running() as address:
        yield address


async def test_a_round_is_seen_live_without_loading_the_page_again(tmp_path, browser, monkeypatch):
    monkeypatch.setattr(live, "LOOK_S", 0.05)
    gate = asyncio.Event()

    async def hold(point):
        if point == "vector":
            await gate.wait()

    async with served(tmp_path, spec()) as server, admin(server) as url, tab(browser) as page:
        await page.open(f"{url}/tasks/{TASK}")
        await page.until("document.getElementById('live').textContent === 'Live'")
        await page.evaluate("window.stays = true")
        fleet = devices(server, 4)
        fleet[3].hold = hold
        round_ = asyncio.create_task(run(fleet))
        step = "document.querySelector('.steps [aria-current] progress')"
        await page.until(f"{step}?.getAttribute('aria-label') === 'masking: 3 of 4 devices'")
        await page.evaluate("document.querySelector('#waits-for summary').focus()")
        await page.enter()
        assert await page.until("document.querySelector('#waits-for').open")
        gate.set()
        await round_
        await page.until("document.querySelector('#history').innerText.includes('released')")
        charts = "[...document.querySelectorAll('svg')].map(s => s.querySelector('title')"
        assert "Norm of the released sum" in await page.evaluate(f"{charts}.textContent)")
        assert await page.evaluate("window.stays")
        assert page.errors == []
        assert all(asked.startswith(url) for asked in page.asked)


async def test_a_task_is_paused_by_keyboard_alone(tmp_path, browser):
    async with served(tmp_path, spec()) as server, admin(server) as url, tab(browser) as page:
        await page.open(f"{url}/tasks/{TASK}")
        for _ in range(20):
            await page.tab()
            if await page.evaluate("document.activeElement.className") == "act":
                break
        await page.enter()
        await page.until("document.getElementById('token') && location.pathname.endsWith('pause')")
        for word, end in (("wrong-token", "pause"), (TOKEN, TASK)):
            await page.evaluate("document.getElementById('token').focus()")
            await page.type(word)
            await page.enter()
            if word == TOKEN:
                await page.until(f"location.pathname === '/tasks/{end}'")
                break
            said = await page.until("document.querySelector('[role=alert]')?.innerText")
            assert "operator-token" in said
        await page.until("document.querySelector('#head .state')?.textContent === 'paused'")
        assert (await server.view())["state"] == "paused"


async def test_every_page_fits_a_phone_is_readable_in_the_dark_and_has_names(tmp_path, browser):
    budget = BudgetSpec(max_epsilon=None, releases_max=3)
    async with served(tmp_path, spec(task=LONG, budget=budget)) as server, admin(server) as url:
        await run_of(server)
        await server.operator(
            "POST", "/partners", {"name": "<b>W" + "i" * 150 + "</b>", "key": bytes([9] * 32)}
        )
        paths = ["/", "/devices", "/ledger", "/ledger/1"]
        paths += [f"/tasks/{LONG}{end}" for end in ("", "/manifest", "/pause")]
        async with tab(browser) as page:
            await page.size(390)
            for path in paths:
                await page.scheme("dark" if path != "/devices" else "light")
                await page.open(url + path)
                width = "document.documentElement.scrollWidth"
                assert await page.evaluate(width) <= 390, path
                assert await page.evaluate(_CONTRAST) == [], path
                unnamed = await page.call("Accessibility.getFullAXTree")
                assert [
                    node["role"]["value"]
                    for node in unnamed["nodes"]
                    if node.get("role", {}).get("value") in ("img", "button", "link", "textbox")
                    and not node["ignored"]
                    and not node.get("name", {}).get("value")
                ] == [], path
                heads = await page.evaluate(
                    "[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])"
                )
                assert heads[0] == 1
                assert all(after - before <= 1 for before, after in itertools.pairwise(heads))
            assert page.errors == []


async def run_of(server):
    fleet = devices(server, 4)
    for device in fleet:
        device.task = LONG
    await run(fleet)
    await server.until(lambda _: not server.service.driver.live, LONG)
