"""Drives a headless Chromium over its debugging protocol, with aiohttp alone."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

_NAMES = ("chromium-headless-shell", "chromium")
_START_S = 60.0
QUIET_S = 30.0  # a page that takes longer has failed


def chromium() -> str:
    """Its path. Without it a test is skipped, unless CHROMIUM=required."""
    for name in _NAMES:
        if (path := shutil.which(name)) is not None:
            return path
    how = "Chromium is not installed; Debian's package chromium-headless-shell is enough"
    if os.environ.get("CHROMIUM") == "required":
        pytest.fail(how)
    pytest.skip(how)


@contextmanager
def running() -> Iterator[str]:
    """A browser with a profile of its own; its debugging address."""
    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            [
                chromium(),
                "--headless",
                "--no-sandbox",  # tests run as root in containers, on pages of their own
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--no-first-run",
                "--disable-background-networking",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield f"http://127.0.0.1:{_port(Path(profile), process)}"
        finally:
            process.terminate()
            process.wait()


def _port(profile: Path, process: subprocess.Popen[bytes]) -> int:
    file, end = profile / "DevToolsActivePort", time.monotonic() + _START_S
    while time.monotonic() < end:
        assert process.poll() is None, "Chromium has ended"
        if file.exists() and (lines := file.read_text().split()):
            return int(lines[0])
        time.sleep(0.02)
    raise AssertionError("Chromium does not listen")


class Tab:
    """One page of the browser. ``errors``: what its console, its policy and its scripts complained
    of. ``asked``: every URL that it has asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.errors: list[str] = []
        self.asked: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            told = message.json()
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif told["method"] == "Log.entryAdded":
                if told["params"]["entry"]["level"] == "error":
                    self.errors.append(told["params"]["entry"]["text"])
            elif told["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(told["params"]["exceptionDetails"]))
            elif told["method"] == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])

    async def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        async with asyncio.timeout(QUIET_S):
            told = await answer
        assert "result" in told, told
        return told["result"]

    async def open(self, url: str) -> None:
        """Load a page, and wait until its scripts have run."""
        await self.call("Page.navigate", url=url)
        await self.until(f"location.href === {url!r} && document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        told = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, expression: str) -> Any:
        """The first true value of an expression."""
        end = time.monotonic() + QUIET_S
        while time.monotonic() < end:
            if found := await self.evaluate(expression):
                return found
            await asyncio.sleep(0.02)
        text = await self.evaluate("document.body.innerText")
        raise AssertionError(f"never came: {expression}\n{text}")

    async def size(self, width: int, height: int = 900) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    async def scheme(self, name: str, media: str = "") -> None:
        """``light`` or ``dark``; ``media``: ``print``, or empty for a screen."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        await self.call("Emulation.setEmulatedMedia", media=media, features=features)

    async def key(self, name: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                code=name,
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    async def tab(self) -> None:
        await self.key("Tab", 9)

    async def enter(self) -> None:
        await self.key("Enter", 13, "\r")

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def screenshot(self) -> bytes:
        """The whole page as PNG."""
        told = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(told["data"])


@asynccontextmanager
async def tab(address: str) -> AsyncIterator[Tab]:
    """A page of a running browser."""
    async with aiohttp.ClientSession() as http:
        async with http.put(f"{address}/json/new?about:blank") as answer:
            target = await answer.json()
        async with http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page = Tab(socket)
            listening = asyncio.create_task(page.listen())
            try:
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await page.call(f"{domain}.enable")
                yield page
            finally:
                listening.cancel()
        async with http.get(f"{address}/json/close/{target['id']}"):
            pass
