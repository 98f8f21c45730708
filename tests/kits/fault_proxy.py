"""A bad network between a device and the aggregator: a proxy on loopback with seeded faults.

The device speaks to the proxy as to the aggregator. Each request meets the fault that the schedule
draws for it, in the order of the device's own requests, so that a seed means the same in each run.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

PAGE = b"<html><body>Welcome to Hotel WiFi. Please log in.</body></html>"
FAULTS: Mapping[str, str] = {
    "drop": "the connection dies within the request; what came before has arrived",
    "drop-late": "the request is taken whole and thrown away, and the connection dies",
    "lost-answer": "the request arrives, and the connection dies instead of an answer",
    "cut": "the answer is cut at some byte",
    "stall": "the request is taken whole, and nobody answers",
    "half-open": "nothing is read and nothing is answered",
    "slow": "both ways at bytes_per_s",
    "slow-down": "the answer at bytes_per_s",
    "slow-up": "the request at bytes_per_s, passed on when it is whole",
    "duplicate": "the request arrives twice; the second answer is passed on",
    "reorder": "the request arrives up to delay_s later",
    "502": "a balancer's page, at the request's head",
    "502-late": "a balancer's page, once the request was taken whole",
    "portal": "a login page with status 200, at the request's head",
    "empty": "status 200 and nothing else, at the request's head",
    "gzip": "the answer is compressed on the way",
}
_PIECE = 1 << 12
_AT_HEAD = {
    "502": (b"502 Bad Gateway", PAGE),
    "portal": (b"200 OK", PAGE),
    "empty": (b"200 OK", b""),
}


@dataclass
class Schedule:
    """Which fault each request meets: one of ``faults`` at ``rate``, drawn from ``seed``."""

    faults: tuple[str, ...]
    rate: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = set(self.faults) - FAULTS.keys()
        if unknown:
            raise ValueError(f"no such fault: {sorted(unknown)}")
        self.random = random.Random(self.seed)

    def draw(self, first_line: str) -> str | None:
        """The next request's; it begins so."""
        met = self.random.random() < self.rate
        return self.random.choice(self.faults) if met and self.faults else None


@dataclass
class Once(Schedule):
    """The first request whose first line begins so, and no other, meets the only fault."""

    begins: str = ""
    rate: float = 1.0

    def draw(self, first_line: str) -> str | None:
        if not self.begins or not first_line.startswith(self.begins):
            return None
        self.begins = ""
        return self.faults[0]


@dataclass
class Request:
    """Head and body of an HTTP message; ``body`` as far as it was read."""

    head: bytes
    length: int
    body: bytes = b""

    @property
    def first_line(self) -> str:
        return self.head.split(b"\r\n")[0].decode("latin-1")

    @property
    def is_chunk(self) -> bool:
        """Of an upload."""
        return self.first_line.startswith("PUT ")


@dataclass
class FaultProxy:
    """One device's way to the aggregator at ``target``.

    ``bytes_per_s``, ``delay_s``: of the faults that name them. ``up``: bytes read from the device;
    ``vector``: those of them that were a vector's. ``stalled_s``: how long the
    device waited for answers that never came. ``met``: how often each fault was met.
    """

    target: tuple[str, int]
    schedule: Schedule
    bytes_per_s: float = 1000.0
    delay_s: float = 1.0
    up: int = 0
    vector: int = 0
    stalled_s: float = 0.0
    met: Counter[str] = field(default_factory=Counter)
    port: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            writer.close()

    def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        request = Request(head, _length(head) or 0)
        self.up += len(head)
        fault = self.schedule.draw(request.first_line)
        self.met[fault or "none"] += 1
        if fault == "half-open":
            await asyncio.sleep(3600)
        if fault in _AT_HEAD:
            writer.write(_page(*_AT_HEAD[fault]))
            await writer.drain()
            with contextlib.suppress(TimeoutError):  # what was on its way already
                await asyncio.wait_for(self._read(reader, request), self.delay_s)
            return False
        if fault == "drop":
            return await self._drop(reader, writer, request)
        await self._read(reader, request, paced=fault in ("slow", "slow-up"))
        if fault == "drop-late":
            writer.transport.abort()
            return False
        if fault == "stall":
            begun_s = time.monotonic()
            await reader.read(1)  # until the device is gone
            self.stalled_s += time.monotonic() - begun_s
            return False
        if fault == "502-late":
            writer.write(_page(b"502 Bad Gateway", PAGE, keep=True))
            await writer.drain()
            return True
        if fault == "reorder":
            await asyncio.sleep(self.schedule.random.random() * self.delay_s)
        if fault == "duplicate":
            await self._ask(request)
        answer = await self._ask(request)
        if fault == "lost-answer":
            writer.transport.abort()
            return False
        if fault == "gzip":
            answer = _compressed(answer)
        if fault == "cut":
            writer.write(answer[: self.schedule.random.randrange(1, len(answer))])
            await writer.drain()
            return False
        await self._write(writer, answer, paced=fault in ("slow", "slow-down"))
        return True

    async def _drop(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Request
    ) -> bool:
        """Pass on the beginning of a request, then let both connections die."""
        most = self.schedule.random.randrange(request.length + 1)
        _, up_writer = await asyncio.open_connection(*self.target)
        up_writer.write(request.head)
        while most > 0:
            piece = await reader.read(min(_PIECE, most))
            if not piece:
                break
            most -= len(piece)
            self._count(request, piece)
            up_writer.write(piece)
        await up_writer.drain()
        up_writer.close()
        writer.transport.abort()
        return False

    def _count(self, request: Request, piece: bytes) -> None:
        self.up += len(piece)
        if request.is_chunk:
            self.vector += len(piece)

    async def _read(
        self, reader: asyncio.StreamReader, request: Request, *, paced: bool = False
    ) -> None:
        piece_bytes = max(64, int(self.bytes_per_s / 20)) if paced else _PIECE
        while len(request.body) < request.length:
            piece = await reader.read(min(piece_bytes, request.length - len(request.body)))
            if not piece:
                raise ConnectionError
            self._count(request, piece)
            request.body += piece
            if paced:
                await asyncio.sleep(len(piece) / self.bytes_per_s)

    async def _write(self, writer: asyncio.StreamWriter, answer: bytes, *, paced: bool) -> None:
        piece_bytes = max(64, int(self.bytes_per_s / 20)) if paced else len(answer)
        for start in range(0, len(answer), piece_bytes):
            writer.write(answer[start : start + piece_bytes])
            await writer.drain()
            if paced:
                await asyncio.sleep(piece_bytes / self.bytes_per_s)

    async def _ask(self, request: Request) -> bytes:
        """The aggregator's whole answer."""
        reader, writer = await asyncio.open_connection(*self.target)
        try:
            writer.write(request.head + request.body)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = _length(head)
            bodiless = head.split(b" ")[1] in (b"204", b"304")
            if bodiless or length == 0:
                return head
            return head + (await reader.readexactly(length) if length else await reader.read())
        finally:
            writer.close()


@asynccontextmanager
async def faulty(
    target: tuple[str, int],
    schedule: Schedule,
    *,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    **parts: float,
) -> AsyncIterator[FaultProxy]:
    """A proxy that listens; ``tls``: with a certificate of its own."""
    made = FaultProxy(target, schedule, **parts)  # type: ignore[arg-type]
    # A narrow window: what nobody reads stays with the sender, as on a slow link.
    server = await asyncio.start_server(made.serve, host, port, limit=1 << 16, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.close()


def _length(head: bytes) -> int | None:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return None


def _page(status: bytes, page: bytes, *, keep: bool = False) -> bytes:
    connection = b"" if keep else b"Connection: close\r\n"
    return (
        b"HTTP/1.1 %s\r\nContent-Type: text/html\r\n%sContent-Length: %d\r\n\r\n"
        % (status, connection, len(page))
        + page
    )


def _compressed(answer: bytes) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    if not body:
        return answer
    body = gzip.compress(body)
    kept = [f for f in head.split(b"\r\n") if not f.lower().startswith(b"content-length")]
    kept += [b"Content-Encoding: gzip", b"Content-Length: %d" % len(body), b"", b""]
    return b"\r\n".join(kept) + body
