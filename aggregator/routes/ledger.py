"""The ledger as static files, public: auditors and witnesses need no token."""

from __future__ import annotations

import re

from aiohttp import web

from aggregator.problems import not_found
from aggregator.service import Service

_TILE = re.compile(r"(entries|\d{1,2})(/x\d{3})*/\d{3}(\.p/\d{1,3})?")
_PUBLIC = {"Access-Control-Allow-Origin": "*"}


def routes(service: Service) -> list[web.RouteDef]:
    folder = service.ledger.folder

    async def checkpoint(_: web.Request) -> web.StreamResponse:
        await service.ledger.publish()
        headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-cache"}
        return web.FileResponse(folder / "checkpoint", headers=headers | _PUBLIC)

    async def tile(request: web.Request) -> web.StreamResponse:
        name = request.match_info["path"]
        path = folder / "tile" / name
        if _TILE.fullmatch(name) and not path.is_file():
            await service.ledger.publish()
        if not _TILE.fullmatch(name) or not path.is_file():
            raise not_found("tile")
        headers = {
            "Content-Type": "application/octet-stream",
            "Cache-Control": "public, max-age=31536000, immutable",
        }
        return web.FileResponse(path, headers=headers | _PUBLIC)

    return [web.get("/ledger/checkpoint", checkpoint), web.get("/ledger/tile/{path:.+}", tile)]
