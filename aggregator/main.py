"""Run one replica until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from aiohttp import web

from aggregator import logs
from aggregator.http import connections
from aggregator.http.admin_port import AdminPort
from aggregator.http.app import SERVICE, build_app
from aggregator.service import Service
from aggregator.settings.options import TOKEN_LONG, Settings
from aggregator.store import migrating
from secagg import __version__

_DRAIN_S = 10.0  # for requests that are under way; what is cut off is resumed
_WAIT_S = 5.0
_log = logs.get_logger("main")


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; a second one ends the process at once, as a kill would.

    Prints one JSON line ``{"listening": {"url": ..., "admin_url": ..., ...}, "port": ...}`` on
    standard output when both ports are open; everything else goes to standard error.
    """
    logs.configure(settings.log_level)
    with (
        contextlib.suppress(KeyboardInterrupt),
        asyncio.Runner(loop_factory=partial(event_loop, settings)) as runner,
    ):
        runner.run(_serve(settings))
    logs.tell_left_out()


def event_loop(settings: Settings) -> asyncio.AbstractEventLoop:
    """uvloop's; asyncio's own where that is not installed, as on Windows, and where the service
    speaks TLS: a connection of uvloop is not to be upgraded once it is made."""
    if settings.tls_certificate is not None:
        return asyncio.new_event_loop()
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _serve(settings: Settings) -> None:
    stopping = Stopping(wait_s(settings))
    stopping.listen(asyncio.get_running_loop())
    app = build_app(settings)
    service = app[SERVICE]
    logs.take_over(service.core.replica)
    warn_of_open_host(settings)
    if service.token_is_short:
        warn_of_short_token()
    public = web.AppRunner(app, access_log=None, shutdown_timeout=_DRAIN_S)
    admin = AdminPort(service, settings)
    started = False
    try:
        # First: a start that is long, by a migration or large cohorts, is alive and not ready.
        admin_url, admin_port = _shown(*await admin.start(), secure=settings.admin_speaks_tls)
        await public.setup()
        here = connections.public(settings, service.core.metrics)
        tls = None if service.tls is None else service.tls.public
        site = connections.Site(public, settings.host, settings.port, here, tls=tls)
        await site.start()
        url, port = _shown(*public.addresses[-1][:2], secure=tls is not None)
        listening = {
            "url": url,
            "port": port,
            "admin_url": admin_url,
            "admin_port": admin_port,
            "data_dir": str(settings.data_dir),
        }
        with contextlib.suppress(OSError):  # the line is in the log too
            print(json.dumps({"listening": listening, "port": port}), flush=True)
        tell_started(service, listening)
        started = True
        await stopping.asked()
        service.drain()
        await stopping.wait()
    finally:
        await public.cleanup()
        await admin.stop()
        if started:
            _log.info("stopped")


def tell_started(service: Service, listening: Mapping[str, object]) -> None:
    """What an operator looks for first: of the token where it lies, never what it is."""
    settings = service.core.settings
    _log.info(
        "started",
        version=__version__,
        schema=migrating.of_code(),
        url=listening["url"],
        admin_url=listening["admin_url"],
        data_dir=listening["data_dir"],
        database=service.core.database.address,
        blobs=settings.blob_url or str(settings.blobs_path),
        operator_shows="the setting operator_token"
        if settings.operator_token is not None
        else str(settings.data_dir / "operator.token"),
    )


class Stopping:
    """What SIGTERM and SIGINT bring: not ready for ``wait_s``, then the drain; a second one: the
    end. SIGINT comes from somebody who watches, and waits for nothing."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._asked = asyncio.Event()

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._ask, number)

    def _ask(self, number: signal.Signals) -> None:
        if self._asked.is_set():
            _log.warning("stopped-at-once", signal=number.name)
            os._exit(128 + number)  # everything is as durable as after a kill
        if number is signal.SIGINT:
            self._wait_s = 0.0
        self._asked.set()
        _log.info("stopping", signal=number.name, wait_s=self._wait_s, drain_s=_DRAIN_S)

    async def asked(self) -> None:
        await self._asked.wait()

    async def wait(self) -> None:
        await asyncio.sleep(self._wait_s)


def wait_s(settings: Settings) -> float:
    """Seconds between not ready and the drain: none where no balancer can be."""
    if settings.shutdown_wait_s is not None:
        return settings.shutdown_wait_s
    return 0.0 if is_loopback(settings.host) else _WAIT_S


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def warn_of_open_host(settings: Settings) -> None:
    """Say once that the public port speaks HTTP to whoever reaches it."""
    if settings.tls_certificate or settings.behind_proxy or is_loopback(settings.host):
        return
    _log.warning(
        "http-without-tls",
        host=settings.host,
        remedy="Tokens of devices and operators cross the network readable. Set tls_certificate "
        "and tls_key; or let a proxy terminate TLS in front of this port, let nobody else reach "
        "it, and set behind_proxy = true; or listen on 127.0.0.1.",
    )


def warn_of_short_token() -> None:
    """Say once that the operator's token is short: it keeps serving, as it did before."""
    _log.warning(
        "operator-credential-short",
        expected=f"{TOKEN_LONG} characters or more",
        remedy="Set a new operator_token, such as one of `openssl rand -base64 32`, or remove the "
        "setting and operator.token, and the service draws one. Until then an address that "
        "showed wrong ones waits also with the right one.",
    )


def _shown(host: str, port: int, *, secure: bool) -> tuple[str, int]:
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{shown}:{port}", port


if __name__ == "__main__":
    serve(Settings.load(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
