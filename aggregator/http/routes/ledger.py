"""The ledger as static files, public: auditors and witnesses need no token."""

from __future__ import annotations

import re

from aiohttp import web

from aggregator.errors import not_found
from aggregator.service import Service
from dp.ledger.contributors import CONTRIBUTORS

_TILE = re.compile(r"(entries|\d{1,2})(/x\d{3})*/\d{3}(\.p/\d{1,3})?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FOREVER = {
    "Content-Type": "application/octet-stream",
    "Cache-Control": "public, max-age=31536000, immutable",
}
_PUBLIC = {"Access-Control-Allow-Origin": "*"}


def routes(service: Service) -> list[web.RouteDef]:
    folder = service.ledger.folder

    async def checkpoint(_: web.Request) -> web.StreamResponse:
        await service.ledger.demand_published()
        headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-cache"}
        return web.FileResponse(folder / "checkpoint", headers=headers | _PUBLIC)

    async def tile(request: web.Request) -> web.StreamResponse:
        name = request.match_info["path"]
        path = folder / "tile" / name
        if _TILE.fullmatch(name) and not path.is_file():
            await service.ledger.demand_published()
        if not _TILE.fullmatch(name) or not path.is_file():
            raise not_found("tile")
        return web.FileResponse(path, headers=_FOREVER | _PUBLIC)

    async def contributors(request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        path = folder / CONTRIBUTORS / digest
        if not _DIGEST.fullmatch(digest) or not path.is_file():
            raise not_found("list of contributors")
        return web.FileResponse(path, headers=_FOREVER | _PUBLIC)

    return [
        web.get("/ledger/checkpoint", checkpoint),
        web.get("/ledger/tile/{path:.+}", tile),
        web.get("/ledger/contributors/{digest}", contributors),
    ]
