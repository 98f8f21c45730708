"""Masked vectors under way: chunked and resumable on any replica, in the blob store.

The signed ``MaskedInput`` header has fixed size and digest before the first byte comes. What a
request brings becomes one *part*, named by cohort, device, offset and length, and appears whole or
not at all; many small ones become a larger one. How far a vector is follows from the names alone:
parts may overlap, since a device sends the same bytes for the same place, and the digest decides.
So any replica goes on where another stopped, two that write at once never mix, and nothing is
remembered across a restart.
When the last byte is there and the digest matches, the vector goes to the cohort's adder, and its
parts are removed as soon as the sum that contains it is durable. A store that fails, or that lets
one wait long, counts as a failure of the service for whose fault the cohort's end is.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aggregator.cohorts.actor import FAILURE, UPLOADS, Cohort, CohortOver
from aggregator.core import Core
from aggregator.errors import Kind, Refusal, conflict
from aggregator.logs import get_logger
from aggregator.store.blobs import ARRIVING, Arriving, BlobMissing
from secagg.errors import RemoteProtocolError
from secagg.server import AcceptUpload, Masking, survivors_of

_log = get_logger("uploads")
_T = TypeVar("_T")
_PART = re.compile(r"[0-9]+-[0-9]+")
LEFT = re.compile(
    rf"{_PART.pattern}|{ARRIVING.pattern}|\.?{FAILURE}(\.[0-9a-f]{{16}})?"
)  # what there may be at a cohort's end
_MERGED = 16
_READ_AT_ONCE = 16  # parts of one vector
_AHEAD_BYTES = 8 << 20  # of parts that are read before their turn
_WRITTEN_AT_ONCE = 256 << 10  # bytes of a request, in memory until then
_SLOW_S = 5.0  # a store that takes longer counts as one that fails
_readers = ThreadPoolExecutor(2 * _READ_AT_ONCE, thread_name_prefix="parts")


@dataclass(frozen=True, order=True)
class Part:
    """Bytes ``offset`` to ``end`` of a vector."""

    offset: int
    end: int

    @classmethod
    def named(cls, name: str) -> Part:
        offset, length = map(int, name.split("-"))
        return cls(offset, offset + length)

    @property
    def name(self) -> str:
        return f"{self.offset}-{self.length}"

    @property
    def length(self) -> int:
        return self.end - self.offset


def chain(parts: Iterable[Part]) -> list[Part]:
    """Those that cover the vector from 0 on without a gap, in order; each brings something."""
    found: list[Part] = []
    end = 0
    for part in sorted(parts, key=lambda part: (part.offset, -part.end)):
        if part.offset > end:
            break
        if part.end > end:
            found.append(part)
            end = part.end
    return found


def reach(parts: Iterable[Part]) -> int:
    """How many bytes from 0 on are there without a gap."""
    return max((part.end for part in chain(parts)), default=0)


def crowd(found: Sequence[Part]) -> Sequence[Part]:
    """The last parts of a chain, where they are to become one: 16 n of them that are all shorter
    than 16^n bytes.

    So a vector of less than 16^n bytes never has more than 16 n parts, in whatever pieces it comes,
    while a byte is written again a few times for each power.
    """
    level, first = 0, len(found)
    while first:
        level += 1
        while first and found[first - 1].length < _MERGED**level:
            first -= 1
        if len(found) - first >= _MERGED * level:
            return found[first:]
    return ()


@dataclass
class _Slot:
    """One device's transfer on this replica. ``writer``: the request whose bytes are taken.
    ``parts``: those that this replica knows of; the store may have more, or none of them any more.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    writer: asyncio.Task[None] | None = None
    parts: set[Part] = field(default_factory=set)

    async def take_over(self) -> None:
        """End a request that is under way; what it brought is kept."""
        writer = self.writer
        if writer is not None:
            writer.cancel()
            await asyncio.wait({writer})


class Uploads:
    """The uploads of one cohort."""

    def __init__(self, core: Core, cohort: Cohort) -> None:
        self._core = core
        self._cohort = cohort
        self._folder = f"{UPLOADS}/{cohort.id}"
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

    async def complete(self) -> list[int]:
        """Devices whose every byte is here while their vector is not yet in the sum."""
        tickets = [t for t in self._cohort.replay.uploads.values() if not self.added(t.index)]
        if not tickets or not isinstance(self._cohort.state, Masking):
            return []
        sizes = await self.ask(self._core.blobs.sizes, self._folder)
        there: dict[int, dict[str, int]] = {}
        for name, size in sizes.items():
            index, _, part = name.partition("/")
            if index.isdecimal():
                there.setdefault(int(index), {})[part] = size
        return [t.index for t in tickets if reach(_whole(there.get(t.index, {}))) == t.size_bytes]

    async def received(self, index: int) -> int:
        """Bytes that the store has, whichever replicas took them; a request of this device that is
        under way here ends, since its sender asks instead of waiting for it."""
        slot = self._slot(index)
        await slot.take_over()
        async with slot.lock:
            if not self.added(index):
                await self._look(index, slot)
            if not self.added(index) and reach(slot.parts) < self.ticket(index).size_bytes:
                await self._cohort.refresh()  # another replica may have added and removed them
            return self._received(index, slot)

    async def append(self, index: int, offset: int, body: AsyncIterator[bytes]) -> int:
        """Append a chunk; returns the bytes that are there then.

        A new request takes over from one that stalls: the older is cancelled. What came before
        a connection broke is kept.

        Raises:
            Refusal: ``upload-offset``, ``upload-taken-over``, as :meth:`ticket`, or as
                ``bodies.stream``.
            CohortOver: the cohort has ended.
        """
        slot = self._slot(index)
        if slot.writer is not None:
            slot.writer.cancel()
        async with slot.lock:
            self.ticket(index)
            if not self.added(index) and offset != reach(slot.parts):
                await self._look(index, slot)
                if offset != reach(slot.parts):
                    await self._cohort.refresh()
            received = self._received(index, slot)
            if self.added(index):
                return received
            if offset != received:
                raise _elsewhere(received, offset)
            await self._merge(index, slot)
            if self._cohort.over:
                raise CohortOver
            work = self._write(index, slot, offset, self.ticket(index).size_bytes, body)
            slot.writer = asyncio.create_task(work)
            try:
                await slot.writer
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                    slot.writer.cancel()
                    raise
                raise conflict("upload-taken-over", "A newer request continues this.") from None
            finally:
                slot.writer = None
            return self._received(index, slot)

    async def _write(
        self, index: int, slot: _Slot, offset: int, size: int, body: AsyncIterator[bytes]
    ) -> None:
        arriving = self._core.blobs.arriving(f"{self._folder}/{index}")
        came, end = bytearray(), offset
        try:
            async for piece in body:
                if end + len(piece) > size:
                    raise Refusal(
                        Kind.TOO_LARGE,
                        "body-too-large",
                        "The vector is longer than its header says.",
                        expected=size,
                        found=end + len(piece),
                    )
                end += len(piece)
                came += piece
                self._core.metrics.upload_bytes.inc(len(piece))
                if len(came) >= _WRITTEN_AT_ONCE:
                    written, came = came, bytearray()
                    await to_its_end(self.ask(arriving.write, written))
        finally:
            if end > offset:  # what came whole is not cancelled any more
                with suppress(asyncio.CancelledError):
                    await to_its_end(self._keep(index, slot, offset, arriving, came))

    async def _keep(
        self, index: int, slot: _Slot, offset: int, arriving: Arriving, rest: bytearray
    ) -> None:
        def keep() -> None:
            with arriving:
                try:
                    arriving.write(rest)
                finally:  # also where the disk is full in the middle of it
                    if arriving.size:
                        part = Part(offset, offset + arriving.size)
                        arriving.keep(f"{self._folder}/{index}/{part.name}")

        try:
            await self.ask(keep)
        except FileNotFoundError:  # the vector is in the sum, or the cohort at its end
            await self._cohort.refresh()
            raise _elsewhere(self._received(index, slot), offset) from None
        slot.parts.add(Part(offset, offset + arriving.size))

    def packed(self, index: int) -> memoryview:
        """The whole vector, if size and digest are right. Blocks; call it in a thread.

        Raises:
            RemoteProtocolError: ``vector-digest``; what came is dropped and may be sent again.
            Refusal: ``upload-offset``: a part is gone, perhaps since another replica added it.
        """
        ticket = self.ticket(index)
        data = bytearray()
        try:
            for piece in self._pieces(index, chain(self._stored(index))):
                data += piece
        except BlobMissing:
            data.clear()
        if len(data) < ticket.size_bytes:
            self._slot(index).parts.clear()
            raise _elsewhere(len(data), ticket.size_bytes)
        digest = hashlib.sha256(data).digest()
        if len(data) != ticket.size_bytes or digest != ticket.vector_digest:
            self.drop(index)
            raise RemoteProtocolError(
                "vector-digest",
                "The vector's bytes are not those that its header announced.",
                culprit=self._cohort.state.roster[index].identity_key,
                expected=ticket.vector_digest.hex(),
                found=digest.hex(),
                remedy="Send it again from offset 0.",
            )
        return memoryview(data)

    def drop(self, index: int) -> None:
        """Remove what came; what the store keeps goes at the cohort's end. Blocks; call it in a
        thread."""
        self._slot(index).parts.clear()
        try:
            self._core.blobs.clear(f"{self._folder}/{index}", _PART)
        except OSError:
            self._cohort.work_failed()
            _log.exception("parts-not-removed", cohort=self._cohort.id)

    async def close(self) -> None:
        """Forget everything, at the cohort's end."""
        await asyncio.gather(*(slot.take_over() for slot in self._slots.values()))
        await self._core.ask_blobs(self._core.blobs.clear, self._folder, LEFT)

    def _slot(self, index: int) -> _Slot:
        return self._slots.setdefault(index, _Slot())

    def _received(self, index: int, slot: _Slot) -> int:
        return self.ticket(index).size_bytes if self.added(index) else reach(slot.parts)

    async def _look(self, index: int, slot: _Slot) -> None:
        slot.parts = await self.ask(self._stored, index)

    async def _merge(self, index: int, slot: _Slot) -> None:
        """Where many small parts came last, make one of them. It delays this device alone."""
        run = crowd(chain(slot.parts))
        if not run:
            return
        whole = Part(run[0].offset, run[-1].end)
        inner = {p for p in slot.parts if whole.offset <= p.offset and p.end <= whole.end}
        try:
            await self.ask(self._merge_now, index, run, whole, inner - {whole})
        except (BlobMissing, FileNotFoundError):  # another replica was first
            await self._look(index, slot)
        else:
            slot.parts = slot.parts - inner | {whole}

    def _merge_now(
        self, index: int, run: Sequence[Part], whole: Part, inner: Iterable[Part]
    ) -> None:
        folder = f"{self._folder}/{index}"
        with self._core.blobs.arriving(folder) as arriving:
            for piece in self._pieces(index, run):
                arriving.write(piece)
            arriving.keep(f"{folder}/{whole.name}")
        self._core.blobs.clear(folder, re.compile("|".join(part.name for part in inner)))

    def _pieces(self, index: int, run: Sequence[Part]) -> Iterator[bytes]:
        """The bytes that a chain, or some of it in a row, covers; read a few parts ahead."""
        waiting: deque[tuple[Part, Future[bytes]]] = deque()
        left, ahead = deque(run), 0
        end = run[0].offset if run else 0
        while left or waiting:
            while left and len(waiting) < _READ_AT_ONCE:
                if waiting and ahead + left[0].length > _AHEAD_BYTES:
                    break
                part = left.popleft()
                ahead += part.length
                name = f"{self._folder}/{index}/{part.name}"
                waiting.append((part, _readers.submit(self._core.blobs.get, name)))
            part, found = waiting.popleft()
            ahead -= part.length
            yield found.result()[end - part.offset :]
            end = part.end

    async def ask(self, work: Callable[..., _T], *arguments: object) -> _T:
        """Ask the store, in a thread; its failing or being slow is noted. Waiting for a thread is
        not the store's failure.

        Raises:
            OSError: the store's.
        """
        loop = asyncio.get_running_loop()
        slow: asyncio.TimerHandle | None = None
        over = False

        def begin() -> None:
            nonlocal slow
            if not over:
                slow = loop.call_later(_SLOW_S, self._cohort.work_failed)

        def timed() -> _T:
            loop.call_soon_threadsafe(begin)
            return work(*arguments)

        try:
            return await self._core.ask_blobs(timed)
        except FileNotFoundError:  # its caller knows why
            raise
        except OSError:
            self._cohort.work_failed()
            raise
        finally:
            over = True
            if slow is not None:
                slow.cancel()

    def _stored(self, index: int) -> set[Part]:
        return _whole(self._core.blobs.sizes(f"{self._folder}/{index}"))


async def to_its_end(work: Coroutine[Any, Any, _T]) -> _T:
    """What must not be broken off: where its caller is cancelled meanwhile, it ends first.

    Raises:
        CancelledError: the caller was cancelled, and the work did not fail.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


def _whole(sizes: Mapping[str, int]) -> set[Part]:
    """Parts that are as long as their names say: a crash of the machine may cut one."""
    parts = {Part.named(name): size for name, size in sizes.items() if _PART.fullmatch(name)}
    return {part for part, size in parts.items() if size == part.length}


def _elsewhere(received: int, offset: int) -> Refusal:
    return conflict(
        "upload-offset",
        "The chunk does not continue what is there.",
        expected=received,
        found=offset,
        remedy="Ask GET …/vector where to go on.",
    )
