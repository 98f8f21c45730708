"""Run one replica until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path

from aiohttp import web

from aggregator import logs
from aggregator.http import connections
from aggregator.http.app import SERVICE, build_admin_app, build_app
from aggregator.settings.options import Settings

_SHUTDOWN_S = 10.0


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM.

    Prints one JSON line ``{"listening": {"url": …, "admin_url": …, …}, "port": …}`` on standard
    output when both ports are open; everything else goes to standard error.
    """
    logs.configure(settings.log_level)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    app = build_app(settings)
    public = _runner(app)
    admin = _runner(build_admin_app(app[SERVICE]))
    try:
        await public.setup()
        await admin.setup()
        here = connections.public(settings, app[SERVICE].core.metrics)
        url, port = await _listen(public, settings.host, settings.port, here)
        there = connections.admin(settings)
        admin_url, admin_port = await _listen(
            admin, settings.admin_host, settings.admin_port, there
        )
        listening = {
            "url": url,
            "port": port,
            "admin_url": admin_url,
            "admin_port": admin_port,
            "data_dir": str(settings.data_dir),
        }
        print(json.dumps({"listening": listening, "port": port}), flush=True)
        await stop.wait()
    finally:
        await admin.cleanup()
        await public.cleanup()


def _runner(app: web.Application) -> web.AppRunner:
    return web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)


async def _listen(
    runner: web.AppRunner, host: str, port: int, allowed: connections.Connections
) -> tuple[str, int]:
    await connections.Site(runner, host, port, allowed).start()
    bound = runner.addresses[-1]
    shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    return f"http://{shown}:{bound[1]}", bound[1]


if __name__ == "__main__":
    serve(Settings.load(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
