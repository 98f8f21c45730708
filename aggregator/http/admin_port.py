"""The admin port in a thread of its own, with an event loop and file descriptors of its own.

Liveness is answered by this thread: also while the other event loop is busy for long, and when the
process has no file descriptor left. All other pages are computed where the service runs, and
streams of events are written here. A service whose event loop has stood still for :data:`STILL_S`
is not alive: a supervisor that looks at its health starts it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from aggregator.http import connections
from aggregator.http.app import build_admin_app
from aggregator.http.dashboard.acts import take_form
from aggregator.http.dashboard.live import ASK
from aggregator.http.dashboard.pages import LIVE
from aggregator.logs import get_logger
from aggregator.service import Service
from aggregator.settings.options import Settings

_log = get_logger("admin")
STILL_S = 60.0
_ANSWER_S = 20.0  # for a page that the service's loop computes
_BEAT_S = 1.0
_KEPT_BACK = 8  # file descriptors for connections that must be taken when there is no other left
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class Heart:
    """Tells by a clock that is never set when an event loop last went round."""

    def __init__(self) -> None:
        self._beaten_at = time.monotonic()

    async def beat(self) -> None:
        while True:
            self._beaten_at = time.monotonic()
            await asyncio.sleep(_BEAT_S)

    @property
    def still_s(self) -> float:
        return time.monotonic() - self._beaten_at


class AdminPort:
    """Serves from :meth:`start` to :meth:`stop`; both are called in the service's loop."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service = service
        self._settings = settings
        self._heart = Heart()
        self._kept_back: list[int] = []
        self._thread = threading.Thread(target=self._run, name="admin-port", daemon=True)
        self._opened: Future[tuple[str, int]] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._main: asyncio.AbstractEventLoop | None = None
        self._beating: asyncio.Task[None] | None = None

    async def start(self) -> tuple[str, int]:
        """The address (host and port) that it listens at.

        Raises:
            ConfigurationError: ``address-unusable``.
        """
        self._main = asyncio.get_running_loop()
        self._beating = asyncio.create_task(self._heart.beat(), name="heart")
        self._thread.start()
        return await asyncio.wrap_future(self._opened)

    async def stop(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(self._failed)
        self._keep_back()
        app = build_admin_app(self._service, [self._answered_by_main_loop()])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            settings = self._settings
            allowed = connections.admin(settings)
            tls = None if self._service.tls is None else self._service.tls.admin
            site = connections.Site(
                runner, settings.admin_host, settings.admin_port, allowed, tls=tls
            )
            await site.start()
            self._opened.set_result(runner.addresses[-1][:2])
            await self._stop.wait()
        finally:
            await runner.cleanup()
            self._give_back()

    def _answered_by_main_loop(self) -> Middleware:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            resource = request.match_info.route.resource
            still_s = self._heart.still_s
            if resource is not None and resource.canonical == "/healthz":
                self._keep_back()
                if still_s < STILL_S:
                    return await handler(request)
                told = {"status": "still", "seconds": round(still_s)}
                return web.json_response(told, status=503)
            if resource is not None and resource.canonical.startswith(f"{LIVE}/"):
                request[ASK] = self._ask
                return await handler(request)
            try:
                if request.method == "POST":  # its body comes to this loop
                    await take_form(request)
                answer: web.StreamResponse = await self._ask(_called(handler, request))
                return answer
            except TimeoutError:
                _log.error("event-loop-busy", still_s=round(still_s, 1))
                told = {"ready": False, "reason": "busy", "detail": "No answer in time."}
                return web.json_response(told, status=503)

        return middleware

    async def _ask(self, work: Coroutine[Any, Any, Any]) -> Any:
        """
        Raises:
            TimeoutError: the service's loop is busy.
        """
        assert self._main is not None  # noqa: S101  from the start on
        there = asyncio.run_coroutine_threadsafe(work, self._main)
        return await asyncio.wait_for(asyncio.wrap_future(there), _ANSWER_S)

    # -- file descriptors ---------------------------------------------------------------------

    def _failed(self, loop: asyncio.AbstractEventLoop, told: dict[str, Any]) -> None:
        """Where a connection could not be taken for want of a descriptor, give back those that were
        kept; asyncio tries again a second later."""
        error = told.get("exception")
        if isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR and self._kept_back:
            self._give_back()
            _log.error("descriptors-exhausted", remedy="Raise the limit of open files (ulimit -n).")
            return
        loop.default_exception_handler(told)

    def _keep_back(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._kept_back) < _KEPT_BACK:
                self._kept_back.append(os.open(os.devnull, os.O_RDONLY))

    def _give_back(self) -> None:
        while self._kept_back:
            os.close(self._kept_back.pop())


async def _called(handler: Handler, request: web.Request) -> web.StreamResponse:
    return await handler(request)
