"""Fetching the ledger's files: one deadline for a look, and patience for what is being rendered.

Nothing is verified here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

from client_sdk.errors import LedgerRefusal, TransportError
from client_sdk.network.http import is_transient
from client_sdk.network.transport import Transport
from dp.errors import LedgerError

_T = TypeVar("_T")
_TRIES = 6  # a replica may serve what it rendered a moment ago
_WAIT_S = 0.25


class LedgerFiles:
    """Files of one ledger by their path."""

    def __init__(
        self, transport: Transport, sleep: Callable[[float], Awaitable[None]], deadline_s: float
    ) -> None:
        """``deadline_s``: of one look, over all files that it needs and every repeat."""
        self._transport = transport
        self._sleep = sleep
        self._deadline_s = deadline_s

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """What is read in here comes before the deadline.

        Raises:
            LedgerRefusal: ``ledger-deadline``.
        """
        try:
            async with asyncio.timeout(self._deadline_s):
                yield
        except TimeoutError as error:
            raise LedgerRefusal(
                "ledger-deadline",
                "The ledger's files did not come in time.",
                expected=f"all that one look needs in {self._deadline_s:g} s",
                remedy="Try again on a faster network, or raise ledger_s of TransportSettings; if "
                "it persists, ask the operator.",
            ) from error

    async def get(self, path: str) -> bytes | None:
        """A file of the ledger; None if it is not there.

        Raises:
            LedgerRefusal: ``ledger-unreadable``: what is served there is refused, or too large.
            TransportError: the aggregator is out of reach.
        """
        try:
            return await self._transport.ledger(path)
        except TransportError as error:
            if error.own_status is None or is_transient(error):
                raise
            raise unreadable(error) from error

    async def fetch(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Files of the log; the full form of a tile where its partial form is gone."""
        files = {}
        for path in paths:
            content = await self.get(path)
            if content is None and ".p/" in path:
                path = path.rpartition(".p/")[0]
                content = await self.get(path)
            if content is not None:
                files[path] = content
        return files

    async def patiently(self, once: Callable[[], Awaitable[_T]]) -> _T:
        """Retry what a file just rendered would mend; what stays wrong is the ledger's fault.

        Raises:
            LedgerRefusal: of a :class:`LedgerError` that no retry has mended.
        """
        for attempt in range(_TRIES):
            try:
                return await once()
            except LedgerError as error:
                if attempt == _TRIES - 1:
                    raise _final(error) from error
            await self._sleep(_WAIT_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


class Unmended(LedgerError):
    """What a stale replica may show once; if it stays, it is lasting, and this is the evidence."""

    def __init__(self, refusal: LedgerRefusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.reason, refusal.message)


def _final(error: LedgerError) -> LedgerRefusal:
    """What a log error is when no retry has mended it."""
    if isinstance(error, Unmended):
        return error.refusal
    return LedgerRefusal(
        "ledger-incomplete" if error.reason == "tile-missing" else error.reason,
        error.message,
        expected=error.expected,
        found=error.found,
        remedy=error.remedy,
    )


def unreadable(error: TransportError) -> LedgerRefusal:
    """The ledger is in reach, and a file of it cannot be had."""
    return LedgerRefusal(
        "ledger-unreadable",
        f"A file of the ledger cannot be had: {error}",
        found=error.status,
        remedy="Ask the operator; a proxy may refuse the paths under /ledger.",
    )
