"""A witness over HTTP: ``POST /add-checkpoint`` of c2sp.org/tlog-witness, on one SQLite file.

The check against the latest cosigned checkpoint and its replacement are one exclusive transaction,
durable before the answer. A request that proves a fork is kept as evidence.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from dp.errors import LedgerError
from dp.tlog.notes import Checkpoint, parse_verifier, split_note
from dp.tlog.witness import (
    REQUEST_BYTES_MAX,
    AddCheckpoint,
    WitnessRefusal,
    consider,
    cosign,
    named_origin,
    parse_request,
    witness_key,
)
from secagg.keys import identity_public_key
from secagg.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dp.tlog.notes import Verifier
_SIZE = "text/x.tlog.size"
_EVIDENCE_MAX = 1_000  # rows; a key's owner cannot fill the disk with forks
_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (
    origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, note BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS evidence (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, reason TEXT NOT NULL, request BLOB NOT NULL);
"""


class Witness:
    """What one witness remembers, and its key.

    Args:
        path: SQLite file; losing it means retiring the key, or the witness may sign a fork.
        name: of the witness, in its signatures.
        seed: Ed25519 seed, 32 bytes, of this witness alone.
        logs: verifier keys of the logs it watches; several of one origin may be given.
        clock: Unix seconds.
    """

    def __init__(
        self, path: Path, name: str, seed: Secret, logs: Iterable[str], clock: Callable[[], float]
    ) -> None:
        self.verifier = witness_key(name, identity_public_key(seed))
        self._path, self._name, self._seed, self._clock = path, name, seed, clock
        self._logs: dict[str, list[Verifier]] = {}
        for log in map(parse_verifier, logs):
            self._logs.setdefault(log.name, []).append(log)
        self._turn = threading.Lock()
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(_SCHEMA)

    def add_checkpoint(self, body: bytes) -> str:
        """The cosignature on a checkpoint, once it is remembered. Blocking.

        Raises:
            WitnessRefusal: with the status of the answer.
            LedgerError: ``request-malformed``.
        """
        request = parse_request(body)
        origin = named_origin(request)
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT size, root FROM seen WHERE origin = ?", (origin,)
            ).fetchone()
            last = None if row is None else Checkpoint(origin, row[0], row[1])
            try:
                new = consider(request, self._logs, last)
            except WitnessRefusal as refusal:
                if refusal.reason == "log-forked":
                    self._keep(connection, refusal.reason, body)
                raise
            self._remember(connection, new, request)
        return cosign(split_note(request.note)[0], self._name, self._seed, int(self._clock()))

    def remembered_size(self, body: bytes) -> int:
        """Size of the latest checkpoint cosigned for the request's log."""
        origin = named_origin(parse_request(body))
        with closing(sqlite3.connect(self._path)) as connection:
            row = connection.execute("SELECT size FROM seen WHERE origin = ?", (origin,)).fetchone()
        return 0 if row is None else int(row[0])

    def evidence(self) -> list[bytes]:
        """Requests that prove a fork: the log's own signature on two histories."""
        with closing(sqlite3.connect(self._path)) as connection:
            return [row[0] for row in connection.execute("SELECT request FROM evidence")]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Exclusive, over processes too; commits evidence as well when a refusal passes through."""
        with self._turn, closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except WitnessRefusal:
                connection.execute("COMMIT")
                raise
            connection.execute("COMMIT")

    def _remember(
        self, connection: sqlite3.Connection, new: Checkpoint, request: AddCheckpoint
    ) -> None:
        connection.execute(
            "INSERT INTO seen VALUES (?, ?, ?, ?) ON CONFLICT (origin) DO UPDATE "
            "SET size = excluded.size, root = excluded.root, note = excluded.note",
            (new.origin, new.size, new.root, request.note),
        )

    def _keep(self, connection: sqlite3.Connection, reason: str, body: bytes) -> None:
        (count,) = connection.execute("SELECT COUNT(*) FROM evidence").fetchone()
        if count < _EVIDENCE_MAX:
            connection.execute(
                "INSERT INTO evidence (at, reason, request) VALUES (?, ?, ?)",
                (int(self._clock()), reason, body),
            )


def build_witness_app(witness: Witness) -> web.Application:
    """The HTTP service of a witness."""

    async def add_checkpoint(request: web.Request) -> web.Response:
        body = await request.read()
        try:
            line = await asyncio.to_thread(witness.add_checkpoint, body)
        except WitnessRefusal as refusal:
            if refusal.status == 409:
                size = await asyncio.to_thread(witness.remembered_size, body)
                return web.Response(
                    status=409, body=f"{size}\n".encode(), headers={"Content-Type": _SIZE}
                )
            return web.Response(status=refusal.status, text=f"{refusal}\n")
        except LedgerError as error:
            return web.Response(status=400, text=f"{error}\n")
        return web.Response(text=line)

    app = web.Application(client_max_size=REQUEST_BYTES_MAX)
    app.add_routes([web.post("/add-checkpoint", add_checkpoint)])
    return app
