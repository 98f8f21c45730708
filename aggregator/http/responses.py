"""Responses that several routes share."""

from __future__ import annotations

import asyncio

from aiohttp import web

from aggregator.errors import not_found
from aggregator.service import Service
from aggregator.store import reads
from aggregator.store.models import MODELS


async def model_file(service: Service, digest: str) -> web.StreamResponse:
    """A model of some version, with Range support; the digest is its entity tag."""
    known = await reads.has_model(service.core.database, digest)
    path = service.core.blobs.path(f"{MODELS}/{digest}")
    if not known or not path.is_file():
        raise not_found("model")
    headers = {"Content-Type": "application/octet-stream", "Cache-Control": "max-age=86400"}
    return web.FileResponse(path, headers=headers)


async def wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
