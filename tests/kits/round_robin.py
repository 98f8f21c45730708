"""A balancer that sends each request to the next backend, as one without sessions does."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

_HOP = {"host", "content-length", "transfer-encoding", "connection", "keep-alive"}


class RoundRobin:
    """``backends``: URLs. A backend that refuses the connection is passed over; one that breaks in
    the middle is answered for with 502. ``sent``: (backend, method) of what reached one."""

    def __init__(self, backends: Sequence[str]) -> None:
        self._next = itertools.cycle(backends)
        self._count = len(backends)
        self.sent: Counter[tuple[str, str]] = Counter()
        self.statuses: Counter[int] = Counter()
        self.url = ""

    async def _forward(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        for _ in range(self._count):
            backend = next(self._next)
            try:
                async with self._http.request(
                    request.method,
                    backend + request.raw_path,
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                ) as answer:
                    self.sent[backend, request.method] += 1
                    self.statuses[answer.status] += 1
                    kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
                    return web.Response(
                        status=answer.status, body=await answer.read(), headers=kept
                    )
            except aiohttp.ClientConnectorError:
                continue
            except aiohttp.ClientError as error:
                return web.Response(status=502, text=repr(error))
        return web.Response(status=503, text="no backend")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[RoundRobin]:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._forward)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._http:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            try:
                yield self
            finally:
                await runner.cleanup()
