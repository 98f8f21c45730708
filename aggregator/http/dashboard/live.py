"""Server-sent events: what has changed on a page, to each browser that shows it.

A stream is served where the port's connections are, and its figures are computed where the service
runs (:data:`ASK`). However many browsers show a page, it is computed at most once in
:data:`LOOK_S`, and more seldom where it takes more than :data:`SHARE` of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from aggregator.errors import DatabaseAway, Kind, Refusal
from aggregator.http.dashboard.sites import HEADERS, demand_stream_from_here
from aggregator.logs import get_logger
from aggregator.service import Service
from secagg.errors import SecaggError

_log = get_logger("dashboard")
_T = TypeVar("_T")
Regions = Mapping[str, str]  # id -> HTML
Ask = Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]
ASK = web.RequestKey[Ask]("ask")
"""Has something computed where the service runs; missing where the stream is served there too."""

STREAMS_MAX = 12  # of the admin port's 32 connections: scrapes and probes keep theirs
LOOK_S = 2.0
SHARE = 0.02
LOOK_MAX_S = 10.0  # a page that takes long on a busy machine is not left to grow old
_LIFE_S = 900.0  # then the browser connects anew: a stream that nobody reads does not last
_TAKE_S = 10.0  # for a browser to take what is sent
_AGAIN_S = 15


def digest(html: str) -> str:
    return hashlib.sha256(html.encode()).hexdigest()[:16]


class Shown:
    """Pages as they are now, while somebody looks at them."""

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        self._steady = steady
        self._pages: dict[str, _Page] = {}

    async def regions(self, path: str, compute: Callable[[], Awaitable[Regions]]) -> Regions:
        page = self._pages.setdefault(path, _Page())
        async with page.lock:
            began = self._steady()
            if page.regions is None or began >= page.until:
                page.regions = None  # what failed is not shown as what is
                page.regions = await compute()
                now = self._steady()
                page.until = now + min(max(LOOK_S, (now - began) / SHARE), LOOK_MAX_S)
            return page.regions

    def forget(self, path: str) -> None:
        self._pages.pop(path, None)


class _Page:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.regions: Regions | None = None
        self.until = 0.0


class Streams:
    """The streams of one replica: counted, bounded, and ended when it stops."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._shown = Shown()
        self._open: dict[str, int] = {}  # by path

    async def serve(
        self, request: web.Request, compute: Callable[[], Awaitable[Regions]]
    ) -> web.StreamResponse:
        """
        Raises:
            Refusal: ``stream-of-another-site``, ``streams-full``, ``draining``, or as ``compute``.
        """
        demand_stream_from_here(request)
        if self._stopping:
            raise Refusal(
                Kind.BUSY, "draining", "The service is being stopped.", retry_after_s=_AGAIN_S
            )
        ask = request.get(ASK) or _here
        with self._counted(request.path):
            found = await ask(self._shown.regions(request.path, compute))
            response = web.StreamResponse(headers={**HEADERS, "X-Accel-Buffering": "no"})
            response.content_type = "text/event-stream"
            with contextlib.suppress(ConnectionError, TimeoutError):  # nobody takes it any more
                await response.prepare(request)
                await self._send(response, request.path, compute, ask, found)
        return response

    @property
    def _stopping(self) -> bool:
        return self._service.draining or not self._service.ready

    @contextlib.contextmanager
    def _counted(self, path: str) -> Iterator[None]:
        if sum(self._open.values()) >= STREAMS_MAX:
            raise Refusal(
                Kind.BUSY,
                "streams-full",
                "As many pages are kept up to date as may be.",
                expected=f"at most {STREAMS_MAX}",
                remedy="Close pages that nobody looks at; this one can be loaded again by hand.",
                retry_after_s=_AGAIN_S,
            )
        gauge = self._service.core.metrics.dashboard_streams
        self._open[path] = self._open.get(path, 0) + 1
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()
            self._open[path] -= 1
            if not self._open[path]:
                del self._open[path]
                self._shown.forget(path)

    async def _send(
        self,
        response: web.StreamResponse,
        path: str,
        compute: Callable[[], Awaitable[Regions]],
        ask: Ask,
        found: Regions,
    ) -> None:
        end = time.monotonic() + _LIFE_S
        sent: dict[str, str] = {}
        events: list[bytes] = []
        while time.monotonic() < end and not self._stopping:
            for name, html in found.items():
                if sent.get(name) != (now := digest(html)):
                    sent[name] = now
                    events.append(_event("region", {"id": name, "digest": now, "html": html}))
            if found:
                events.append(_event("now", {"at": self._service.core.clock()}))
            await _take(response, events)
            await asyncio.sleep(LOOK_S)
            events = []
            try:
                found = await ask(self._shown.regions(path, compute))
            except Exception as error:
                found, events = {}, [_event("trouble", {"said": _said(error)})]


async def _here(work: Coroutine[Any, Any, _T]) -> _T:
    return await work


async def _take(response: web.StreamResponse, events: list[bytes]) -> None:
    async with asyncio.timeout(_TAKE_S):
        await response.write(b"".join(events))


def _event(name: str, data: Mapping[str, object]) -> bytes:
    """JSON holds no line break, which would end the data."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))


def _said(error: Exception) -> str:
    if isinstance(error, DatabaseAway):
        return "The database does not answer."
    if isinstance(error, TimeoutError):
        return "The service does not answer in time."
    if isinstance(error, SecaggError):
        return error.detail
    _log.error("page-failed", exc_info=error)
    return "The service failed. Its log has the cause (page-failed)."
