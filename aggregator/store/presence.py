"""Who works on a database of PostgreSQL: replicas that serve, side by side, or one command that
changes what all of them rely on.

An advisory lock on a connection of its own says so: PostgreSQL frees it with the connection, so a
replica that was killed holds none. A replica whose connection broke takes it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aggregator.logs import get_logger
from secagg.errors import ConfigurationError

_LOCK = 0x5EC_A67
_HOLDERS = """
SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND classid = 0 AND objid = $1 AND objsubid = 1 AND granted
AND mode = $2 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_LOOK_S = 1.0  # between two looks at the connection
_ANSWER_S = 5.0
_log = get_logger("presence")


class Presence:
    def __init__(self, connect: Callable[[], Awaitable[Any]]) -> None:
        """``connect``: makes a connection of asyncpg."""
        self._connect = connect
        self._connection: Any = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Be one of the replicas that run, until :meth:`close`.

        Raises:
            ConfigurationError: ``database-in-maintenance``.
        """
        if not await self._take("pg_try_advisory_lock_shared"):
            raise ConfigurationError(
                "database-in-maintenance",
                "A `secagg db` command works on the database.",
                expected="replicas that serve alone",
                remedy="Start the replica when the command has ended.",
            )
        self._watch = asyncio.create_task(self._stay())

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """No replica runs meanwhile, and no other command.

        Raises:
            ConfigurationError: ``replicas-running`` or ``database-in-maintenance``.
        """
        try:
            if not await self._take("pg_try_advisory_lock"):
                raise await self._refusal()
            yield
        finally:
            await self.close()

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        await self._leave()

    async def _take(self, function: str) -> bool:
        async with asyncio.timeout(_ANSWER_S):
            self._connection = await self._connect()
            return bool(await self._connection.fetchval(f"SELECT {function}($1::bigint)", _LOCK))

    async def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it broke: its lock went with it
                await connection.close(timeout=_ANSWER_S)

    async def _stay(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                if self._connection is None:
                    if await self._take("pg_try_advisory_lock_shared"):
                        _log.info("presence-renewed")
                        continue
                    _log.warning("database-in-maintenance")
                    await self._leave()
                else:
                    await self._connection.fetchval("SELECT 1", timeout=_ANSWER_S)
            except Exception as error:  # the driver's own, of many kinds
                if self._connection is not None:
                    _log.warning("presence-lost", error=type(error).__name__)
                await self._leave()

    async def _refusal(self) -> ConfigurationError:
        running = await self._connection.fetchval(_HOLDERS, _LOCK, "ShareLock")
        if not running:
            return ConfigurationError(
                "database-in-maintenance",
                "Another `secagg db` command works on the database.",
                remedy="Wait until it has ended.",
            )
        return ConfigurationError(
            "replicas-running",
            "Replicas of the service run on this database, and the command would take from under "
            "them what they rely on.",
            expected="no running replica",
            found=f"{running} running",
            remedy="Stop all replicas and try again. Nothing was changed.",
        )
