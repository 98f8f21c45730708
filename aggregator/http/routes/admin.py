"""The operator's port: liveness, readiness, metrics, and the dashboard."""

from __future__ import annotations

from aiohttp import web

from aggregator.http.dashboard import pages
from aggregator.logs import get_logger
from aggregator.service import Service

_log = get_logger("admin")


def routes(service: Service) -> list[web.RouteDef]:
    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def is_ready() -> bool:
        try:
            return service.ready and await service.healthy()
        except Exception:
            _log.exception("database-away")
            return False

    async def readyz(_: web.Request) -> web.Response:
        ready = await is_ready()
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=await service.measures.page(is_ready),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    return [
        web.get("/healthz", healthz),
        web.get("/readyz", readyz),
        web.get("/metrics", metrics),
        *pages.routes(service),
    ]
