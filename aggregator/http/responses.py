"""Responses that several routes share."""

from __future__ import annotations

import asyncio

from aiohttp import web

from aggregator.errors import Kind, Refusal, not_found
from aggregator.service import Service
from aggregator.store import reads
from aggregator.store.models import MODELS

_PIECE_BYTES = 1 << 18


async def model_file(service: Service, digest: str) -> web.StreamResponse:
    """A model of some version, with Range support; what has its digest never changes."""
    known = await reads.has_model(service.core.database, digest)
    path = service.core.blobs.path(f"{MODELS}/{digest}")
    if not known or not path.is_file():
        raise not_found("model")
    headers = {"Content-Type": "application/octet-stream", "Cache-Control": "max-age=86400"}
    return web.FileResponse(path, headers=headers)


async def delta_file(
    service: Service, request: web.Request, model: str, held: str
) -> web.StreamResponse:
    """The shortest delta of a present model, with Range and If-Range; its digest is its tag.

    Raises:
        Refusal: ``no-delta``.
    """
    delta = await service.deltas.shortest(model, held)
    if delta is None:
        raise _no_delta(model)
    try:
        file = delta.path.open("rb")
    except FileNotFoundError:  # another replica knows of a newer version
        service.deltas.forget(delta)
        raise _no_delta(model) from None
    tag, size = f'"{delta.digest}"', delta.size_bytes
    start = _start_of(request, size) if request.headers.get("If-Range", tag) == tag else 0
    response = web.StreamResponse(status=206 if start else 200, headers={"ETag": tag})
    response.content_type = "application/octet-stream"
    response.content_length = size - start
    if start:
        response.headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
    with file:
        file.seek(start)
        await response.prepare(request)
        while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
            await response.write(piece)
    await response.write_eof()
    return response


def _no_delta(model: str) -> Refusal:
    return Refusal(
        Kind.NOT_FOUND,
        "no-delta",
        "There is no shorter form of this model.",
        remedy=f"Get /v1/models/{model}.",
    )


def _start_of(request: web.Request, size: int) -> int:
    """Where an answer begins; 0 but for a range to the end, which is all that devices ask for."""
    try:
        asked = request.http_range
    except ValueError:
        return 0
    start = asked.start or 0
    return start if asked.stop is None and 0 < start < size else 0


async def wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
