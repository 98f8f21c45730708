"""A connection of TLS until its handshake is done: counted from its first moment.

asyncio tells a server of a connection only after the handshake. So one that never shakes hands
would not count, and whoever opens many would take all file descriptors.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

from aggregator.tls import failures


class Handshakes:
    """Those under way at one port, which end with it. ``stopped``: no more may begin."""

    def __init__(self) -> None:
        self.stopped = False
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, shake: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(shake, name="handshake")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """All have ended, and left the count, when it returns."""
        self.stopped = True
        await asyncio.sleep(0)  # one that was cancelled before it ran could not clean up
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Handshake(asyncio.Protocol):
    """Admits a connection, shakes hands, and then leaves it to the protocol that ``made`` makes.

    Args:
        under_way: of its port.
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
        under_way: Handshakes,
        admit: Callable[[asyncio.BaseTransport], bool],
        leave: Callable[[], None],
        failed: Callable[[BaseException], None],
        timeout_s: float,
    ) -> None:
        self._context = context
        self._made = made
        self._under_way = under_way
        self._admit = admit
        self._leave = leave
        self._failed = failed
        self._timeout_s = timeout_s
        self._early: list[bytes] = []  # what came with the end of the handshake

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  narrows the type
        transport.pause_reading()  # the first bytes are the handshake's
        if self._under_way.stopped or not self._admit(transport):
            transport.abort()  # there is no way yet to say why
            return
        self._under_way.begin(self._shake(transport))

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
