"""Connections of one port: how many, from where, and how long each may keep the service waiting.

aiohttp closes a connection that waits for a request; it has no deadline of its own for a request
that arrives byte by byte or an answer that nobody reads, and no caps. :class:`Site` listens with
connections that have both.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import LineTooLong

from aggregator.http.handshakes import Handshake, Handshakes
from aggregator.http.problems import encode, problem
from aggregator.http.requests import HEADER, new_id
from aggregator.logs import get_logger
from aggregator.metrics import Metrics
from aggregator.settings.options import Settings
from secagg.errors import ConfigurationError, SecaggError
from secagg.http_api import PROBLEM_TYPE

try:
    import resource
except ImportError:  # Windows has no limit of this kind
    resource = None  # type: ignore[assignment]

_log = get_logger("connections")
HEADER_BYTES = 16 << 10  # of a request's whole head
ADMIN_CONNECTIONS_MAX = 32
_FIELD_BYTES = 4 << 10  # a token has at most 2,048 characters
_FIELDS_MAX = 64
_PIPELINED_MAX = 4  # requests that wait for the one in work; devices and proxies send none
_BUFFER_BYTES = 1 << 16  # of a body that nobody has read yet; at twice that, the client waits
_RESERVE_MIN, _RESERVE_MAX = 96, 512  # file descriptors: database, ledger, blobs, logs, admin port
_BACKLOG = 1_024  # connections that wait to be accepted
# asyncio accepts as many at each wake-up as it is told the backlog has, before a cap can close any.
_ACCEPTED_AT_ONCE = 1
_AGAIN_S = 5


@dataclass
class Connections:
    """The caps and deadlines of one port, and what is open at it.

    ``max``: connections in all; ``per_address``: of one address (IPv6: one /64 network).
    Times in seconds: to the first byte, from it to the end of the head, between two requests,
    and for one answer to be taken, also what is left of it when its connection is closed.
    """

    max: int
    per_address: int
    first_byte_s: float = 10.0
    header_s: float = 20.0
    idle_s: float = 75.0
    answer_s: float = 600.0
    metrics: Metrics | None = None  # None: not counted
    by_address: Counter[str] = field(default_factory=Counter)

    def admit(self, address: str) -> tuple[int, str] | None:
        """Count a connection, or say by which status and reason it is refused."""
        if self.by_address.total() >= self.max:
            return 503, "connections-full"
        if self.by_address[address] >= self.per_address:
            return 429, "connections-of-address"
        self.by_address[address] += 1
        self._show()
        return None

    def admitted(self, address: str) -> tuple[int, str] | None:
        """As :meth:`admit`; a refusal is counted and logged."""
        refused = self.admit(address)
        if refused is not None:
            self.refused(refused[1])
            _log.info("refused", reason=refused[1], remote=address)
        return refused

    def leave(self, address: str) -> None:
        self.by_address[address] -= 1
        if not self.by_address[address]:
            del self.by_address[address]
        self._show()

    def refused(self, reason: str) -> None:
        if self.metrics is not None:
            self.metrics.refusals.labels(reason).inc()

    def _show(self) -> None:
        if self.metrics is not None:
            self.metrics.connections.set(self.by_address.total())


def public(settings: Settings, metrics: Metrics) -> Connections:
    """For the public port: as many as are set, as the file descriptors of this process allow.

    Each connection may keep a file open beside its socket, and a reserve is left for all else, the
    admin port above all. No address has more than half of all, unless a proxy's is everybody's.
    """
    most = settings.connections_max
    if (files := raise_file_limit()) is not None:
        reserve = max(_RESERVE_MIN, min(_RESERVE_MAX, files // 4))
        fit = max(2, (files - reserve) // 2)
        if fit < most:
            _log.warning("connections-capped", wanted=most, connections=fit, open_files_max=files)
        most = min(most, fit)
    share = most if settings.behind_proxy else max(1, most // 2)
    per_address = min(settings.connections_per_address, share)
    metrics.connections_max.set(most)
    return _with_deadlines(settings, most, per_address, metrics)


def admin(settings: Settings) -> Connections:
    """For the admin port, out of the reserve."""
    return _with_deadlines(settings, ADMIN_CONNECTIONS_MAX, ADMIN_CONNECTIONS_MAX, None)


def _with_deadlines(
    settings: Settings, most: int, per_address: int, metrics: Metrics | None
) -> Connections:
    return Connections(
        max=most,
        per_address=per_address,
        first_byte_s=settings.connection_first_byte_s,
        header_s=settings.connection_header_s,
        idle_s=settings.connection_idle_s,
        answer_s=settings.answer_max_s,
        metrics=metrics,
    )


def raise_file_limit() -> int | None:
    """Raise the limit of open files as far as this process may; the limit then, None: unknown."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # macOS has a lower limit of its own
            pass
    return None if soft == resource.RLIM_INFINITY else soft


class Connection(web.RequestHandler):
    """One connection under the caps and deadlines of its port."""

    __slots__ = ("_address", "_connections", "_cut", "_head_bytes", "_late", "_wire")

    def __init__(
        self, manager: web.Server, connections: Connections, address: str | None = None
    ) -> None:
        """``address``: under which it was admitted already."""
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]
            max_line_size=_FIELD_BYTES,
            max_field_size=_FIELD_BYTES,
            max_headers=_FIELDS_MAX,
            read_bufsize=_BUFFER_BYTES,
            keepalive_timeout=connections.idle_s,
        )
        self._connections = connections
        self._address = address
        self._head_bytes = 0  # of a head that is not complete
        self._late: asyncio.TimerHandle | None = None
        self._wire: asyncio.Transport | None = None  # until it is lost, also while it closes
        self._cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._address is None:
            address = _network(transport.get_extra_info("peername"))
            if (refused := self._connections.admitted(address)) is not None:
                self._force_close, self._manager = True, None  # not begun: nothing to end
                out = cast(asyncio.Transport, transport)  # uvloop's are none by name
                out.write(_refusal(*refused))
                out.close()
                return
            self._address = address
        self._wire = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        self._expect("first-byte-late", self._connections.first_byte_s)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._expect_nothing()
        self._wire = None
        if self._cut is not None:
            self._cut.cancel()
        if self._address is not None:
            self._connections.leave(self._address)
            self._address = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        requests = self._request_count
        super().data_received(data)
        if self._request_count > requests:  # a head is complete
            self._expect_nothing()
            if len(self._messages) > _PIPELINED_MAX:
                self._end("pipelined")
        elif self._waiter is not None and not self._waiter.done():
            begins = self._head_bytes == 0
            self._head_bytes += len(data)
            if self._head_bytes > HEADER_BYTES:
                self._end("header-too-large")
            elif begins:
                self._expect("header-late", self._connections.header_s)

    async def start(self) -> None:
        await super().start()
        self._cut_later(self._connections.answer_s)

    def force_close(self) -> None:
        super().force_close()
        self._cut_later(self._connections.answer_s)

    def _cut_later(self, within_s: float) -> None:
        """A transport that closes waits until all is taken, and this ends that wait."""
        if self._wire is not None and self._cut is None:
            self._cut = self._loop.call_later(within_s, self._wire.abort)

    def _expect(self, reason: str, within_s: float) -> None:
        """End the connection in a while, unless what is due has come."""
        if self._late is not None:
            self._late.cancel()
        self._late = self._loop.call_later(within_s, self._end, reason)

    def _expect_nothing(self) -> None:
        self._head_bytes = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self, reason: str) -> None:
        self._connections.refused(reason)
        _log.info("refused", reason=reason, remote=self._address)
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a head that is not one of HTTP/1.1. Its bytes, perhaps a token, go nowhere."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        status, reason = 400, "head-malformed"
        if isinstance(exc, LineTooLong):
            status, reason = 431, "header-too-large"
        self._connections.refused(reason)
        name = new_id()
        _log.info("refused", reason=reason, remote=self._address, request_id=name)
        answer = problem(
            status,
            SecaggError(
                reason,
                "The request's head is not HTTP/1.1, or larger than the service takes.",
                remedy=f"A line of a head has at most {_FIELD_BYTES} bytes, a head {_FIELDS_MAX} "
                "of them.",
            ),
        )
        answer.headers[HEADER] = name
        answer.force_close()
        return answer

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        try:
            async with asyncio.timeout(self._connections.answer_s):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            self._connections.refused("answer-not-taken")
            _log.info("refused", reason="answer-not-taken", remote=self._address)
            self._cut_later(0.0)  # it had its time
            self.force_close()
            return resp, True


def _handshake(
    manager: web.Server,
    connections: Connections,
    context: ssl.SSLContext,
    under_way: Handshakes,
) -> Handshake:
    """A connection of TLS. Its handshake has as long as a request's head."""
    address = "unknown"

    def admit(transport: asyncio.BaseTransport) -> bool:
        nonlocal address
        address = _network(transport.get_extra_info("peername"))
        return connections.admitted(address) is None

    def failed(error: BaseException) -> None:
        connections.refused("tls-handshake")
        why = getattr(error, "reason", None) or type(error).__name__
        _log.info("refused", reason="tls-handshake", remote=address, why=why)

    return Handshake(
        context,
        lambda: Connection(manager, connections, address),
        under_way=under_way,
        admit=admit,
        leave=lambda: connections.leave(address),
        failed=failed,
        timeout_s=connections.header_s,
    )


class Site(web.BaseSite):
    """Listens at ``host`` and ``port`` with connections of these caps and deadlines. ``tls``: of
    its TLS; None: it speaks HTTP."""

    __slots__ = ("_connections", "_handshakes", "_host", "_port", "_reuse_port")

    def __init__(
        self,
        runner: web.AppRunner,
        host: str,
        port: int,
        connections: Connections,
        *,
        tls: ssl.SSLContext | None = None,
        reuse_port: bool | None = None,
    ) -> None:
        super().__init__(runner, ssl_context=tls, backlog=_BACKLOG)
        self._host = host
        self._port = port
        self._connections = connections
        self._reuse_port = reuse_port
        self._handshakes = Handshakes()

    @property
    def name(self) -> str:
        scheme = "http" if self._ssl_context is None else "https"
        return f"{scheme}://{self._host}:{self._port}"

    async def start(self) -> None:
        """
        Raises:
            ConfigurationError: ``address-unusable``.
        """
        await super().start()
        manager = self._runner.server
        assert manager is not None  # noqa: S101  the base class has looked
        tls, connections = self._ssl_context, self._connections

        def accepted() -> asyncio.Protocol:
            if tls is not None:
                return _handshake(manager, connections, tls, self._handshakes)
            return Connection(manager, connections)

        try:
            self._server = await asyncio.get_running_loop().create_server(
                accepted,
                self._host,
                self._port,
                backlog=_ACCEPTED_AT_ONCE,
                reuse_port=self._reuse_port,
            )
        except (OSError, UnicodeError) as error:  # a name that IDNA does not know is the latter
            raise ConfigurationError(
                "address-unusable",
                f"The service cannot listen on host {self._host!r}, port {self._port}: {error}.",
                remedy="Give an address of this machine, such as 127.0.0.1, 0.0.0.0 or ::1 without "
                "brackets, and a port that no other program has.",
            ) from error
        for listening in self._server.sockets:
            with listening.dup() as same:
                same.listen(self._backlog)

    async def stop(self) -> None:
        await super().stop()
        await self._handshakes.stop()


def _network(peer: Any) -> str:
    """What counts as one address: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except (TypeError, IndexError, ValueError):
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _refusal(status: int, reason: str) -> bytes:
    """An answer to whatever the request would have been; nothing of it is read."""
    phrase = {429: "Too Many Requests", 503: "Service Unavailable"}[status]
    body = encode(
        status,
        SecaggError(
            reason,
            "The service has as many connections open as it may.",
            remedy="Wait as long as Retry-After says.",
        ),
    )
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {PROBLEM_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {_AGAIN_S}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
