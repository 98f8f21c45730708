"""A server of one handler on loopback, and the SDK's transport to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import aiohttp.test_utils
import msgspec
from aiohttp import web

from client_sdk.network.http import TransportSettings
from client_sdk.network.transport import Transport
from secagg.http_api import Problem, UploadState

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
QUICK = TransportSettings(
    patience_s=1.0,
    request_s=0.5,
    transfer_s=2.0,
    poll_s=0.1,
    backoff_first_s=0.001,
    backoff_max_s=0.01,
    jitter_s=0.001,
    chunk_bytes=1 << 16,
)
DEVICE = "/v1/sessions/s"


class Served:
    """A server of one handler on loopback, and a transport to it."""

    def __init__(self, handler: Handler, settings: TransportSettings = QUICK) -> None:
        self.requests: list[web.Request] = []
        self._handler = handler
        self._settings = settings
        self.tokens = 0

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await self._handler(request)

    def _issue(self, now_s: int) -> str:
        self.tokens += 1
        self.issued_at = now_s
        return f"token-{self.tokens}"

    async def __aenter__(self) -> tuple[Served, Transport]:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._server = aiohttp.test_utils.TestServer(app)
        await self._server.start_server()
        self._transport = Transport(str(self._server.make_url("/")), self._issue, self._settings)
        return self, await self._transport.__aenter__()

    @property
    def address(self) -> tuple[str, int]:
        assert self._server.port is not None
        return self._server.host, self._server.port

    async def __aexit__(self, *error: object) -> None:
        await self._transport.__aexit__(None, None, None)
        await self._server.close()


def json(body: object, status: int = 200, **headers: str) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, headers=headers)


class UploadServer:
    """Keeps a vector; breaks the connection after ``break_after`` bytes of every chunk."""

    def __init__(self, size: int, break_after: int | None = None) -> None:
        self.size = size
        self.break_after = break_after
        self.kept = bytearray()
        self.chunks: list[tuple[int, int]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.method == "PUT":
            offset = int(request.query["offset"])
            if offset != len(self.kept):
                return json(Problem(reason="upload-offset", message="Elsewhere."), 409)
            before = len(self.kept)
            async for piece in request.content.iter_any():
                self.kept += piece
                taken = len(self.kept) - before
                if self.break_after is not None and taken >= self.break_after:
                    del self.kept[before + self.break_after :]
                    self.chunks.append((offset, self.break_after))
                    assert request.transport is not None
                    request.transport.abort()
                    return web.Response()
            self.chunks.append((offset, len(self.kept) - before))
        complete = len(self.kept) == self.size
        return json(UploadState(received_bytes=len(self.kept), complete=complete))
