"""The operator's port: liveness, readiness, metrics, and the dashboard."""

from __future__ import annotations

from aiohttp import web

from aggregator.http.dashboard import pages
from aggregator.service import Service


def routes(service: Service) -> list[web.RouteDef]:
    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def is_ready() -> bool:
        return await service.not_ready() is None

    async def readyz(_: web.Request) -> web.Response:
        found = await service.not_ready()
        if found is None:
            warnings = [
                {"reason": each.reason, "detail": each.detail}
                for each in service.readiness.warnings()
            ]
            return web.json_response({"ready": True} | ({"warnings": warnings} if warnings else {}))
        told = {"ready": False, "reason": found.reason, "detail": found.detail}
        return web.json_response(told, status=503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=await service.measures.page(is_ready, started=service.ready),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    return [
        web.get("/healthz", healthz),
        web.get("/readyz", readyz),
        web.get("/metrics", metrics),
        *pages.routes(service),
    ]
