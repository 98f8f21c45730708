"""A connection of TLS until its handshake is done: counted from its first moment.

asyncio tells a server of a connection only after the handshake. So one that never shakes hands
would not count, and whoever opens many would take all file descriptors.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from aggregator.tls import failures


class Handshake(asyncio.Protocol):
    """Admits a connection, shakes hands, and then leaves it to the protocol that ``made`` makes.

    Args:
        admit: whether the connection may be; it counts it.
        leave: takes a connection that ends before the handshake is done out of the count.
        failed: told why a handshake failed.
        timeout_s: for the handshake.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        made: Callable[[], asyncio.Protocol],
        *,
        admit: Callable[[asyncio.BaseTransport], bool],
        leave: Callable[[], None],
        failed: Callable[[BaseException], None],
        timeout_s: float,
    ) -> None:
        self._context = context
        self._made = made
        self._admit = admit
        self._leave = leave
        self._failed = failed
        self._timeout_s = timeout_s
        self._early: list[bytes] = []  # what came with the end of the handshake
        self._shaking: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  narrows the type
        transport.pause_reading()  # the first bytes are the handshake's
        if not self._admit(transport):
            transport.abort()  # there is no way yet to say why
            return
        self._shaking = asyncio.create_task(self._shake(transport), name="handshake")

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    async def _shake(self, transport: asyncio.Transport) -> None:
        why: list[ssl.SSLError] = []
        failures.set(why)
        try:
            secure = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._timeout_s,
            )
        except BaseException as error:
            transport.abort()
            self._leave()
            if isinstance(error, OSError):  # of TLS, of the network, or it took too long
                self._failed(why[0] if why else error)
                return
            raise
        if secure is None:  # the caller left at once
            self._leave()
            return
        protocol = self._made()
        secure.set_protocol(protocol)
        protocol.connection_made(secure)
        for data in self._early:
            protocol.data_received(data)
