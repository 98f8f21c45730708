"""Who works on a database: replicas that serve, side by side, or one command that changes what all
of them rely on.

On PostgreSQL an advisory lock on a connection of its own says so: it is freed with the connection,
so a replica that was killed holds none. A replica whose connection broke takes it anew, and a
command leaves it the time. On SQLite it is a lock of a file beside the database, which the kernel
frees.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import IO, Any, Protocol

from aggregator.logs import get_logger
from secagg.errors import ConfigurationError
from secagg.files.locks import lock_file, share_file

_LOCK = 0x5EC_A67
_HOLDERS = """
SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND classid = 0 AND objid = $1 AND objsubid = 1 AND granted
AND mode = $2 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_AGE = "SELECT extract(epoch FROM now() - pg_postmaster_start_time())::float8"
_LOOK_S = 1.0  # between two looks at the connection
_ANSWER_S = 5.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_log = get_logger("presence")


class Presence(Protocol):
    async def start(self) -> None:
        """Be one of the replicas that run, until :meth:`close`.

        Raises:
            ConfigurationError: ``database-in-maintenance``.
        """

    def alone(self) -> contextlib.AbstractAsyncContextManager[None]:
        """No replica runs meanwhile, and no other command.

        Raises:
            ConfigurationError: ``replicas-running`` or ``database-in-maintenance``.
        """

    async def close(self) -> None: ...


class FilePresence:
    """``file``: beside the database, and of no other use. Where the system has no lock that
    several share, replicas do not keep a command off."""

    def __init__(self, file: Path) -> None:
        self._path = file
        self._file: IO[bytes] | None = None

    async def start(self) -> None:
        """As :meth:`Presence.start`."""
        try:
            self._take(share_file)
        except OSError as error:
            await self.close()
            raise _in_maintenance() from error

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """As :meth:`Presence.alone`."""
        try:
            try:
                self._take(lock_file)
            except OSError as error:
                raise _running("some run, or another `secagg db` command") from error
            yield
        finally:
            await self.close()

    async def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _take(self, lock: Callable[[IO[bytes]], None]) -> None:
        """Where the file system has no locks, replicas do not keep a command off.

        Raises:
            ConfigurationError: ``database-lock-unusable``.
            OSError: others hold it.
        """
        file = self._open()
        try:
            lock(file)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def _open(self) -> IO[bytes]:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except PermissionError as error:
            raise ConfigurationError(
                "database-lock-unusable",
                f"{self._path} cannot be opened: it belongs to another user.",
                remedy=f"Give it to the service's user (chown USER {self._path}), and run "
                "`secagg db` as that user.",
            ) from error
        self._file = file = os.fdopen(descriptor, "r+b")
        return file


class ServerPresence:
    def __init__(self, connect: Callable[[], Awaitable[Any]]) -> None:
        """``connect``: makes a connection of asyncpg."""
        self._connect = connect
        self._connection: Any = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """As :meth:`Presence.start`."""
        if not await self._take("pg_try_advisory_lock_shared"):
            raise _in_maintenance()
        self._watch = asyncio.create_task(self._stay())

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """As :meth:`Presence.alone`. Replicas whose connections broke get the time to be back: it
        is looked twice, and once a server that has just started has been up for a while."""
        try:
            for wait_s in (await self._back_within_s(), 0.0):
                if not await self._take("pg_try_advisory_lock"):
                    raise await self._refusal()
                if wait_s:
                    await self._leave()
                    await asyncio.sleep(wait_s)
            yield
        finally:
            await self.close()

    async def _back_within_s(self) -> float:
        """How long a replica that runs may take to hold its lock again."""
        connection = await self._connect()
        try:
            age_s: float = await connection.fetchval(_AGE, timeout=_ANSWER_S)
        finally:
            await connection.close(timeout=_ANSWER_S)
        return max(2.5 * _LOOK_S, _ANSWER_S + 2 * _LOOK_S - age_s)

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
        return _running(f"{running} running")


def _in_maintenance() -> ConfigurationError:
    return ConfigurationError(
        "database-in-maintenance",
        "A `secagg db` command works on the database.",
        expected="replicas that serve alone",
        remedy="Start the replica when the command has ended.",
    )


def _running(found: str) -> ConfigurationError:
    return ConfigurationError(
        "replicas-running",
        "Replicas of the service run on this database, and the command would take from under "
        "them what they rely on.",
        expected="no running replica",
        found=found,
        remedy="Stop all replicas and try again. Nothing was changed.",
    )
