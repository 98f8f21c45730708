"""A slow network that breaks: each connection passes on so many bytes, late, and then is cut."""

from __future__ import annotations

import asyncio
import contextlib
import random
from urllib.parse import urlsplit

PIECE = 4_096


class BadNetwork:
    """A proxy on loopback before an aggregator. ``cuts``: connections that were broken so far."""

    def __init__(self, server: str, *, bytes_per_s: float, cut_after: int, seed: int) -> None:
        """``cut_after``: most bytes of a connection, drawn from a half of it on."""
        to = urlsplit(server)
        self._to = (to.hostname, to.port)
        self._bytes_per_s = bytes_per_s
        self._cut_after = cut_after
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self.cuts = 0
        self.url = ""

    async def __aenter__(self) -> BadNetwork:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, up: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        down, to = await asyncio.open_connection(*self._to)
        left = self._random.randint(self._cut_after // 2, self._cut_after)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            nonlocal left
            while piece := await source.read(PIECE):
                await asyncio.sleep(len(piece) / self._bytes_per_s)
                left -= len(piece)
                if left < 0:
                    self.cuts += 1
                    return
                sink.write(piece)
                await sink.drain()

        both = [asyncio.create_task(pump(up, to)), asyncio.create_task(pump(down, back))]
        try:
            with contextlib.suppress(OSError):
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in both:
                one.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            to.close()
            back.close()
