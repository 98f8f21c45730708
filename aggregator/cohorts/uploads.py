"""Masked vectors under way: chunked, resumable files that live until the vector is added.

The signed ``MaskedInput`` header has fixed size and digest before the first byte comes. A file's
length is its resume offset, so nothing else need be remembered across a restart. When the last
byte is there and the digest matches, the vector goes to the cohort's adder, and the file is
removed as soon as the sum that contains it is durable.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from aggregator.cohorts.actor import Cohort
from aggregator.core import Core
from aggregator.errors import Kind, Refusal, conflict
from secagg.errors import RemoteProtocolError
from secagg.files.folders import remove_files
from secagg.server import AcceptUpload, Masking, survivors_of

UPLOADS = re.compile("[0-9]+")  # names of its files: roster indices


@dataclass
class _Slot:
    """One device's transfer on this replica. ``writer``: the request that is appending."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    writer: asyncio.Task[None] | None = None


class Uploads:
    """The uploads of one cohort."""

    def __init__(self, core: Core, cohort: Cohort) -> None:
        self._core = core
        self._cohort = cohort
        self._folder = core.settings.data_dir / "uploads" / cohort.id
        self._slots: dict[int, _Slot] = {}

    def ticket(self, index: int) -> AcceptUpload:
        """The accepted header.

        Raises:
            Refusal: ``upload-unannounced`` or ``upload-late``.
        """
        ticket = self._cohort.replay.uploads.get(index)
        if ticket is None:
            raise conflict(
                "upload-unannounced",
                "No masked-input header was accepted for this device.",
                remedy="Post the signed MaskedInput message first.",
            )
        if not self.added(index) and not isinstance(self._cohort.state, Masking):
            raise conflict("upload-late", "The cohort has gone on without this vector.")
        return ticket

    async def announced(self, index: int) -> AcceptUpload:
        """The accepted header, even if another replica has just accepted it.

        Raises:
            Refusal: as :meth:`ticket`.
        """
        try:
            return self.ticket(index)
        except Refusal:
            await self._cohort.refresh()
            return self.ticket(index)

    def added(self, index: int) -> bool:
        """Whether the device's vector is durably in the sum."""
        state = self._cohort.state
        return index in (state.added if isinstance(state, Masking) else survivors_of(state))

    def complete(self) -> list[int]:
        """Devices whose every byte is here while their vector is not yet in the sum."""
        if not isinstance(self._cohort.state, Masking):
            return []
        tickets = self._cohort.replay.uploads.values()
        waiting = [ticket for ticket in tickets if not self.added(ticket.index)]
        return [t.index for t in waiting if self.received(t.index) == t.size_bytes]

    def path(self, index: int) -> Path:
        return self._folder / f"{index}"

    def received(self, index: int) -> int:
        if self.added(index):
            return self.ticket(index).size_bytes
        try:
            return self.path(index).stat().st_size
        except FileNotFoundError:
            return 0

    async def append(self, index: int, offset: int, body: AsyncIterator[bytes]) -> int:
        """Append a chunk; returns the bytes that are there then.

        A new request takes over from one that stalls: the older is cancelled. What came before
        a connection broke is kept.

        Raises:
            Refusal: ``upload-offset``, or as ``bodies.stream``.
        """
        slot = self._slots.setdefault(index, _Slot())
        if slot.writer is not None:
            slot.writer.cancel()
        async with slot.lock:
            ticket = self.ticket(index)
            received = self.received(index)
            if self.added(index):
                return received
            if offset != received:
                raise conflict(
                    "upload-offset",
                    "The chunk does not continue what is there.",
                    expected=received,
                    found=offset,
                    remedy="Ask GET …/vector where to go on.",
                )
            slot.writer = asyncio.create_task(self._write(index, ticket.size_bytes, body))
            try:
                await slot.writer
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                    slot.writer.cancel()
                    raise
                raise conflict("upload-taken-over", "A newer request continues this.") from None
            finally:
                slot.writer = None
            return self.received(index)

    async def _write(self, index: int, size: int, body: AsyncIterator[bytes]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.path(index).open("ab") as file:
            async for part in body:
                if file.tell() + len(part) > size:
                    raise Refusal(
                        Kind.TOO_LARGE,
                        "body-too-large",
                        "The vector is longer than its header says.",
                        expected=size,
                        found=file.tell() + len(part),
                    )
                file.write(part)
                self._core.metrics.upload_bytes.inc(len(part))

    def packed(self, index: int) -> bytes:
        """The whole vector, if size and digest are right. Blocks; call it in a thread.

        Raises:
            RemoteProtocolError: ``vector-digest``; the file is dropped and may be sent again.
        """
        ticket = self.ticket(index)
        data = self.path(index).read_bytes()
        found = hashlib.sha256(data).digest()
        if len(data) != ticket.size_bytes or found != ticket.vector_digest:
            self.drop(index)
            raise RemoteProtocolError(
                "vector-digest",
                "The vector's bytes are not those that its header announced.",
                culprit=self._cohort.state.roster[index].identity_key,
                expected=ticket.vector_digest.hex(),
                found=found.hex(),
                remedy="Send it again from offset 0.",
            )
        return data

    def drop(self, index: int) -> None:
        self.path(index).unlink(missing_ok=True)

    def close(self) -> None:
        """Forget everything, at the cohort's end."""
        for slot in self._slots.values():
            if slot.writer is not None:
                slot.writer.cancel()
        remove_files(self._folder, UPLOADS)
