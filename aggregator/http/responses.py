"""Responses that several routes share."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping

from aiohttp import web

from aggregator.core import Core
from aggregator.errors import Kind, Refusal, not_found
from aggregator.logs import get_logger
from aggregator.service import Service
from aggregator.store import reads
from aggregator.store.blobs import BlobMissing, Readable
from aggregator.store.models import MODELS

_log = get_logger("http")
_PIECE_BYTES = 1 << 18
_LARGE_PIECE_BYTES = 4 << 20  # from an object store, where each piece is a request
_LARGE = threading.BoundedSemaphore(64)  # that are in memory while their readers take them
_KEPT = {"Cache-Control": "max-age=86400"}


async def model_file(
    service: Service, request: web.Request, digest: str, *, to_the_end: bool = False
) -> web.StreamResponse:
    """A model of some version, with Range support; what has its digest never changes.

    Args:
        to_the_end: return when it is sent, so that whoever called knows whether it was taken. Else
            a file is sent by the kernel, after the return.

    Raises:
        Refusal: ``not-found``.
        BlobMissing: the model is known, and gone from the store.
    """
    if not await reads.has_model(service.core.database, digest):
        raise not_found("model")
    name, blobs = f"{MODELS}/{digest}", service.core.blobs
    path = None if to_the_end else blobs.path(name)
    if path is None:
        blob = await service.core.ask_blobs(blobs.open, name)
        return await _streamed(service.core, request, blob, f'"{digest}"', _KEPT)
    if not path.is_file():
        raise BlobMissing(name)
    headers = {"Content-Type": "application/octet-stream", **_KEPT}
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
        blob = await service.core.ask_blobs(service.core.blobs.open, delta.name)
    except BlobMissing:  # another replica knows of a newer version
        service.deltas.forget(delta)
        raise _no_delta(model) from None
    return await _streamed(service.core, request, blob, f'"{delta.digest}"', {})


async def _streamed(
    core: Core, request: web.Request, blob: Readable, tag: str, headers: Mapping[str, str]
) -> web.StreamResponse:
    size = blob.size
    start = _start_of(request, size) if request.headers.get("If-Range", tag) == tag else 0
    response = web.StreamResponse(status=206 if start else 200, headers={"ETag": tag, **headers})
    response.content_type = "application/octet-stream"
    response.content_length = size - start
    if start:
        response.headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
    with contextlib.closing(blob):
        blob.seek(start)
        try:
            async with asyncio.timeout(core.settings.answer_max_s) as limit:
                await response.prepare(request)
                while request.method != "HEAD" and await _send_piece(core, blob, response):
                    pass
                await response.write_eof()
        except TimeoutError:
            if not limit.expired():
                raise
            raise _not_taken(core, request) from None
    return response


def _not_taken(core: Core, request: web.Request) -> ConnectionResetError:
    """What remains to be raised after an answer that its reader did not take in time."""
    core.metrics.refusals.labels("answer-not-taken").inc()
    _log.info("refused", reason="answer-not-taken")
    if request.transport is not None:
        request.transport.abort()
    return ConnectionResetError("the answer was not taken in time")


async def _send_piece(core: Core, blob: Readable, response: web.StreamResponse) -> bool:
    """Whether there was one."""
    large = core.settings.blob_url is not None and _LARGE.acquire(blocking=False)
    try:
        piece = await core.ask_blobs(blob.read, _LARGE_PIECE_BYTES if large else _PIECE_BYTES)
        if piece:
            await response.write(piece)
        return bool(piece)
    finally:
        if large:
            _LARGE.release()


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
