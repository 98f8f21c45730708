"""Reading request bodies: size caps before reading, a deadline for stalls, a minimum rate.

aiohttp sets no deadline on a request body, so a client that sends one byte a minute would hold a
handler for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

import msgspec
from aiohttp import web

from aggregator.errors import Kind, Refusal
from aggregator.settings.options import Settings
from secagg.ranges import INT32_MAX

_T = TypeVar("_T")
_TEXT_SHOWN = 40


def declared_size(request: web.Request, cap: int) -> int | None:
    """The Content-Length, refused above ``cap`` before a byte is read; None when chunked.

    Raises:
        Refusal: 413 ``body-too-large``.
    """
    size = request.content_length
    if size is not None and size > cap:
        raise _too_large(cap, size)
    return size


def _too_large(cap: int, size: int) -> Refusal:
    return Refusal(
        Kind.TOO_LARGE, "body-too-large", "The body is too large.", expected=cap, found=size
    )


async def stream(request: web.Request, cap: int, settings: Settings) -> AsyncIterator[bytes]:
    """The body's parts as they come, at most ``cap`` bytes in all.

    Raises:
        Refusal: 413 ``body-too-large``, 408 ``body-stalled`` or 408 ``body-too-slow``;
            400 ``body-truncated`` if the connection ends before the announced size.
    """
    declared_size(request, cap)
    started, received = time.monotonic(), 0
    while True:
        try:
            async with asyncio.timeout(settings.body_stall_s):
                part = await request.content.readany()
        except TimeoutError:
            raise Refusal(
                Kind.TOO_SLOW,
                "body-stalled",
                "No byte of the body came for too long.",
                expected=f"{settings.body_stall_s} s",
                remedy="Resume the transfer with a smaller chunk.",
            ) from None
        except (web.PayloadAccessError, ConnectionError, OSError) as error:
            raise Refusal(Kind.MALFORMED, "body-truncated", "The body ended early.") from error
        if not part:
            return
        received += len(part)
        if received > cap:
            raise _too_large(cap, received)
        late_s = time.monotonic() - started - settings.body_stall_s
        if late_s > 0 and received < late_s * settings.body_min_rate:
            raise Refusal(
                Kind.TOO_SLOW,
                "body-too-slow",
                "The body comes too slowly.",
                expected=f"{settings.body_min_rate} bytes/s",
                remedy="Resume the transfer with a smaller chunk.",
            )
        yield part


async def read(request: web.Request, cap: int, settings: Settings) -> bytes:
    """The whole body, at most ``cap`` bytes; raises as :func:`stream`."""
    return b"".join([part async for part in stream(request, cap, settings)])


def parse_json(body: bytes, kind: type[_T]) -> _T:
    """A JSON body of the given type.

    Raises:
        Refusal: 400 ``body-malformed``, 422 ``text-unusable``.
    """
    try:
        parsed = msgspec.json.decode(body, type=kind, strict=True)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        detail = str(error) if isinstance(error, msgspec.ValidationError) else "not valid JSON"
        raise Refusal(
            Kind.MALFORMED, "body-malformed", f"The body does not parse: {detail}."
        ) from error
    # Half of a surrogate pair, which no database takes either, is not JSON to msgspec.
    if b"u0000" in body and (text := next(_with_nul(msgspec.json.decode(body)), None)) is not None:
        raise Refusal(
            Kind.INVALID,
            "text-unusable",
            "A text holds a character that not every database takes.",
            expected="no NUL",
            found=repr(text[:_TEXT_SHOWN]),
            remedy="Leave the character out.",
        )
    return parsed


def _with_nul(value: object) -> Iterator[str]:
    """Texts in a JSON document, names of members too, that PostgreSQL refuses."""
    if isinstance(value, str):
        if "\0" in value:
            yield value
    elif isinstance(value, dict):
        for name, member in value.items():
            yield from _with_nul(name)
            yield from _with_nul(member)
    elif isinstance(value, list):
        for member in value:
            yield from _with_nul(member)


def query_number(request: web.Request, name: str, default: float, most: float) -> float:
    """A non-negative number from the query string, cut at ``most``.

    Raises:
        Refusal: 400 ``query-malformed``.
    """
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise Refusal(Kind.MALFORMED, "query-malformed", f"{name} must be a number, zero or more.")
    return min(value, most)


def query_int(request: web.Request, name: str, default: int, most: int = INT32_MAX) -> int:
    """An integer from 0 to ``most`` from the query string; raises as :func:`query_number`."""
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 18 and int(text) <= most):
        raise Refusal(
            Kind.MALFORMED, "query-malformed", f"{name} must be an integer from 0 to {most}."
        )
    return int(text)


def json_response(body: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
