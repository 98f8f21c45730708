"""What callers may have under way at this replica: open requests, and bytes of bodies in memory.

Each device has caps of its own, so that one which fills them costs nobody else; the bytes of all
together have one too. Requests of all together are capped by the connections
(:mod:`aggregator.http.connections`): each works on one request at a time. Masked vectors do not
count as bytes, they go to disk as they come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.typedefs import Handler

from aggregator.errors import Kind, Refusal
from aggregator.intake import bodies
from aggregator.settings.options import Settings

OPERATOR = b"operator"
_CALLER = web.RequestKey("caller", bytes)
_AGAIN_S = 1


class Intake:
    """Counts of one replica."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: Counter[bytes] = Counter()  # requests, by caller
        self._held: Counter[bytes] = Counter()  # bytes of bodies, by caller

    def enter(self, request: web.Request, caller: bytes) -> None:
        """Count a request of ``caller`` until it is answered.

        Raises:
            Refusal: 429 ``requests-open``.
        """
        if _CALLER in request:
            return
        most = self._settings.device_requests_max
        if self._open[caller] >= most:
            raise Refusal(
                Kind.TOO_MANY,
                "requests-open",
                "This device has too many requests open.",
                expected=f"at most {most}",
                remedy="Wait for their answers.",
                retry_after_s=_AGAIN_S,
            )
        self._open[caller] += 1
        request[_CALLER] = caller

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        finally:
            if (caller := request.get(_CALLER)) is not None:
                _take_off(self._open, caller, 1)

    @asynccontextmanager
    async def body(self, request: web.Request, caller: bytes, cap: int) -> AsyncIterator[bytes]:
        """The whole body of at most ``cap`` bytes; what it may come to is reserved before it is
        read, and counts until the block ends.

        Raises:
            Refusal: 429 ``bodies-open`` (this caller's), 503 ``bodies-full`` (all together), or as
                ``bodies.read``.
        """
        declared = bodies.declared_size(request, cap)
        size = cap if declared is None else declared
        self._reserve(caller, size)
        try:
            yield await bodies.read(request, cap, self._settings)
        finally:
            _take_off(self._held, caller, size)

    def _reserve(self, caller: bytes, size: int) -> None:
        settings = self._settings
        if self._held[caller] + size > settings.device_body_bytes_max:
            raise Refusal(
                Kind.TOO_MANY,
                "bodies-open",
                "The bodies that this caller is sending are too large together.",
                expected=f"at most {settings.device_body_bytes_max} bytes",
                found=self._held[caller] + size,
                remedy="Send one after the other.",
                retry_after_s=_AGAIN_S,
            )
        if self._held.total() + size > settings.body_bytes_max:
            raise Refusal(
                Kind.BUSY,
                "bodies-full",
                "The service holds as many bytes of bodies as it may.",
                expected=f"at most {settings.body_bytes_max} bytes",
                remedy="Wait as long as Retry-After says.",
                retry_after_s=_AGAIN_S,
            )
        self._held[caller] += size


def _take_off(counts: Counter[bytes], caller: bytes, amount: int) -> None:
    counts[caller] -= amount
    if counts[caller] <= 0:
        del counts[caller]
