"""The operator's port: liveness, readiness, metrics, and the dashboard."""

from __future__ import annotations

from aiohttp import web

from aggregator.http.dashboard import pages
from aggregator.service import Service


def routes(service: Service) -> list[web.RouteDef]:
    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        ready = service.ready and await service.healthy()
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=service.core.metrics.render(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    return [
        web.get("/healthz", healthz),
        web.get("/readyz", readyz),
        web.get("/metrics", metrics),
        *pages.routes(service),
    ]
